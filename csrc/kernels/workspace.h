// Memory for the hot loops.
#ifndef MTL_KERAS_KERNELS_WORKSPACE_H_
#define MTL_KERAS_KERNELS_WORKSPACE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mtl_keras {

// Doubles, aligned for vectors.
class Workspace {
 public:
  explicit Workspace(int64_t size) {
    const std::size_t bytes = (size * sizeof(double) + 63) / 64 * 64;
    data_.reset(static_cast<double*>(std::aligned_alloc(64, std::max<std::size_t>(bytes, 64))));
    if (!data_) throw std::bad_alloc();
  }
  double* get() { return data_.get(); }

 private:
  struct Free {
    void operator()(double* data) const { std::free(data); }
  };
  std::unique_ptr<double, Free> data_;
};

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_WORKSPACE_H_

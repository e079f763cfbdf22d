// How kernels run on threads that belong to someone else.
#ifndef MTL_KERAS_KERNELS_PARALLEL_H_
#define MTL_KERAS_KERNELS_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace mtl_keras {

// Calls work(begin, end) over ranges that cover [0, total), each element once, in
// any order and on any threads. `cost` is a guess at the cycles per element.
using ParallelFor = std::function<void(
    int64_t total, int64_t cost, const std::function<void(int64_t, int64_t)>& work)>;

inline void Serially(int64_t total, int64_t /*cost*/,
                     const std::function<void(int64_t, int64_t)>& work) {
  if (total > 0) work(0, total);
}

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_PARALLEL_H_

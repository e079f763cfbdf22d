// Element types of gradients, and conversions the kernels share.
#ifndef MTL_KERAS_KERNELS_DTYPE_H_
#define MTL_KERAS_KERNELS_DTYPE_H_

#include <cstddef>
#include <cstdint>

namespace mtl_keras {

enum class DType { kHalf, kBfloat16, kFloat, kDouble };

// Static: sources for different instruction sets must not share one copy.
static inline std::size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kHalf:
    case DType::kBfloat16:
      return 2;
    case DType::kFloat:
      return 4;
    case DType::kDouble:
      return 8;
  }
  return 0;
}

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_DTYPE_H_

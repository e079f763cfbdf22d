#include "kernels/simd.h"

namespace mtl_keras {

namespace baseline {
extern const Simd kSimd;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Simd kSimd;
}
namespace avx512 {
extern const Simd kSimd;
}
#endif

int AvailableSimd(const Simd** out, int capacity) {
  int count = 0;
  auto add = [&](const Simd& simd) {
    if (count < capacity) out[count++] = &simd;
  };
  add(baseline::kSimd);
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2) add(avx2::kSimd);
  if (has_avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    add(avx512::kSimd);
  }
#endif
  return count;
}

const Simd& BestSimd() {
  static const Simd* const best = [] {
    const Simd* all[3];
    const int count = AvailableSimd(all, 3);
    return all[count - 1];
  }();
  return *best;
}

}  // namespace mtl_keras

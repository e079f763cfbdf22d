#define MTL_SIMD_NAMESPACE baseline
#define MTL_SIMD_NAME "baseline"
#define MTL_TILE 2
#include "kernels/simd.inc"

#define MTL_SIMD_NAMESPACE avx512
#define MTL_SIMD_NAME "avx512"
#define MTL_TILE 4
#define MTL_PANEL_DEPTH 2
#define MTL_BYTES 64
#include "kernels/simd.inc"

#define MTL_SIMD_NAMESPACE avx2
#define MTL_SIMD_NAME "avx2"
#define MTL_TILE 2
#define MTL_PANEL_DEPTH 2
#define MTL_BYTES 32
#include "kernels/simd.inc"

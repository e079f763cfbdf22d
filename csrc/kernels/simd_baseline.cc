#define MTL_SIMD_NAMESPACE baseline
#define MTL_SIMD_NAME "baseline"
#define MTL_TILE 2
#define MTL_PANEL_DEPTH 1
#define MTL_BYTES 16
#include "kernels/simd.inc"

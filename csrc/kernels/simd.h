// The hot loops, compiled once per instruction set and chosen at run time.
//
// Sums run over eight lanes whatever the width of the registers, so that all
// variants add in the same order. Products of float32 (and narrower) values are
// exact in double, hence Gram matrices of such gradients have the same bits on
// every instruction set; those of float64 gradients may differ in the last bit.
#ifndef MTL_KERAS_KERNELS_SIMD_H_
#define MTL_KERAS_KERNELS_SIMD_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace mtl_keras {

// Elements of every row that are worked on at a time; a multiple of eight.
constexpr int64_t kGramBlock = 256;
constexpr int64_t kCombineBlock = 1024;
// Doubles beyond the last column of a factor.
constexpr int64_t kFactorPadding = 8;

struct Simd {
  const char* name;

  // Doubles of workspace, 64-byte aligned, that `gram` needs for `rows` rows.
  int64_t (*gram_workspace)(int rows);

  // Writes the products of elements [begin, end) of all pairs of rows, symmetric
  // [rows, rows].
  void (*gram)(const void* const* rows, const DType* dtypes, int num_rows,
               int64_t begin, int64_t end, double* workspace, double* out);

  // out[begin, end) = sum over rows of weight * row, all of one dtype. Sums are
  // formed in float32, or in double for double. `out` may be rows[0], no other.
  void (*combine)(const void* const* rows, const double* weights, int num_rows,
                  DType dtype, int64_t begin, int64_t end, void* out);

  // sum += row, or sum = row where `first`; n elements.
  void (*widen)(const void* row, DType dtype, int64_t n, bool first, double* sum);

  // Adds the products of all pairs of `count` rows to eight lanes each:
  // sums[(tasks[i] * num_tasks + tasks[j]) * 8 + lane] for j <= i. The rows follow
  // each other; `width` is a multiple of eight.
  void (*add_pairs)(const double* rows, const int* tasks, int count, int64_t width,
                    int num_tasks, double* sums);

  // Positive definite matrices are held as upper triangles R with A = R' R, whose
  // diagonals are reciprocals, in rows of `stride` doubles; rows have kFactorPadding
  // of them beyond the last column, which hold no meaning.

  // Makes columns [from, n) of R in place of those of A's upper triangle, from those
  // before them. Reciprocals are not finite where A is not positive definite.
  void (*factorise)(double* upper, int64_t stride, int from, int n);

  // Replaces x [n] by the solution of R' R y = x.
  void (*substitute)(const double* upper, int64_t stride, int n, double* x);

  // Moves each entry of x >= 0 in turn to the minimum of x' A x / 2 - b' x along it,
  // `slope` being b - A x; A is symmetric [n, n] with a positive diagonal.
  void (*descend)(const double* matrix, int n, double* x, double* slope);
};

// The fastest variant that this processor has.
const Simd& BestSimd();

// All variants that this processor has, for tests. Returns how many.
int AvailableSimd(const Simd** out, int capacity);

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_SIMD_H_

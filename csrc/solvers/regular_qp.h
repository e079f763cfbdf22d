// Many quadratic programs over x >= 0 that share one well-conditioned matrix.
#ifndef MTL_KERAS_SOLVERS_REGULAR_QP_H_
#define MTL_KERAS_SOLVERS_REGULAR_QP_H_

#include <cstdint>
#include <vector>

#include "kernels/simd.h"
#include "solvers/problem.h"

namespace mtl_keras {

// Minimises x' A x / 2 - b' x over x >= 0 by block pivoting (Portugal, Judice and
// Vicente, Mathematics of Computation 63, 1994): every entry that breaks a condition
// changes sides, all at once. A few sweeps of coordinate descent guess the free
// entries. Where few entries are held at zero, the inverse of the whole matrix, which
// all programs share, gives the minimum over the free ones by a system of the held ones.
//
// `NonnegativeQp` solves what this class does not: an inverse of a nearly singular matrix
// loses the digits that decide which entries are free.
class RegularQp {
 public:
  // `noise` is the share of its terms below which a slope counts as zero; rounding
  // errors of the solution always do. The matrix has diagonal entries near 1.
  RegularQp(const Matrix& matrix, double noise);

  // Whether the matrix is well enough conditioned; `Solve` may not be called else.
  bool regular() const { return regular_; }

  // Writes the minimum [T]. Returns whether its optimality conditions hold.
  bool Solve(const double* linear, double* x);

 private:
  void Guess();
  bool Exchange();
  void Factor(const Matrix& matrix, const std::vector<int>& entries);
  void Invert();
  void Goal();
  void GoalFromInverse();
  void Release(Vector* x);
  void Slopes(const double* x);
  bool Refine();
  void Combine(const Matrix& matrix, const std::vector<int>& rows,
               const double* weights, double* sum);

  int size_;
  int64_t stride_;  // of the factor
  double noise_share_;
  const Simd& simd_;
  bool regular_;
  Matrix matrix_, sizes_;   // the latter of absolute values
  Vector factor_;           // of the entries in `order_`, or in `held_`
  std::vector<char> free_;  // of each entry, whether it may be positive
  std::vector<int> order_;  // the free entries
  std::vector<int> held_;   // the others
  std::vector<int> all_;
  Matrix inverse_;          // of size 0 until needed
  Vector whole_;            // the minimum over all entries
  Vector linear_, goal_, gain_, noise_, work_, rest_, step_;
  std::vector<const void*> pointers_;
};

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_REGULAR_QP_H_

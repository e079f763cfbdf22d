// Quadratic programs: x >= 0, and the methods that are one.
#ifndef MTL_KERAS_SOLVERS_QUADRATIC_H_
#define MTL_KERAS_SOLVERS_QUADRATIC_H_

#include <cstdint>
#include <vector>

#include "kernels/simd.h"
#include "solvers/problem.h"

namespace mtl_keras {

// Minimises x' A x / 2 - b' x over x >= 0 by the primal active-set method of Lawson
// and Hanson (Solving Least Squares Problems, 1974, chapter 23). `A` is positive
// semi-definite up to rounding, with diagonal entries near 1.
//
// The factor of the free entries is kept: an entry that comes in adds one column to
// it, and one that leaves has the columns after its own made anew. Where few entries
// are held at zero, the inverse of the whole matrix, which all programs share, gives
// the minimum over the free ones by a system of the held ones.
class NonnegativeQp {
 public:
  // `noise` is the share of its terms below which a slope counts as zero; rounding
  // errors of the solution always do.
  explicit NonnegativeQp(const Matrix& matrix, double noise = 0.0);

  // Starts from `x` and `free` where `warm`, a feasible point such as the result
  // for a nearby `linear`, and leaves the solution there. Returns whether the
  // optimality conditions hold; they fail where there is no minimum.
  bool Solve(const double* linear, bool warm, double* x, char* free);

  // The same, from the guess at the free entries that some descent along each entry
  // gives. Falls back on `Solve`.
  bool SolveNear(const double* linear, double* x, char* free);

  // Adds up `count` rows of the matrix, times weights, in `sum` [T], and their absolute
  // values in `sizes`.
  void AddRows(const int* rows, const double* weights, int count, double* sum,
               double* sizes);

 private:
  double Scale(const double* linear);
  void Guess(char* free);
  bool IsNearlyDefinite();
  bool Exchange(char* free);
  bool Conclude(double unit, double* x, const char* free);
  void Factor(const Matrix& matrix, const std::vector<int>& entries, double ridge,
              std::size_t from);
  void Goal();
  void Slopes(const double* x);
  void Invert();
  void Release(Vector* x);
  void GoalFromInverse();
  bool Refine();

  int size_;
  int64_t stride_;  // of the factor
  double noise_share_;
  const Simd& simd_;
  Matrix matrix_, sizes_;   // the latter of absolute values
  Vector factor_;           // of the entries in `order_`, or in `held_`
  std::vector<int> order_;  // the free entries as they came in
  std::vector<int> held_;   // the others, where the inverse is used
  bool invertible_ = true;  // well enough for the inverse to be of use
  Matrix inverse_;          // of size 0 until needed
  Vector whole_;            // the minimum over all entries
  Vector linear_, goal_, gain_, noise_, work_, rest_, magnitudes_, step_;
  std::vector<const void*> pointers_;
};

// The functions below write [T] weights, and return whether they are the solution.

// min w' G w over the simplex (MGDA).
bool MinNorm(const double* gramian, int size, double* weights);

// min v' G v over v >= u for each of `batch` rows u, each [T]. Writes [batch, T].
// `precision` is that of the gradients, see problem.h: lesser conflicts are none.
bool DualCone(const double* gramian, int size, const double* lower, int batch,
              double precision, double* out);

// Sum over tasks of the projections of u_i g_i (UPGrad), or the projection of their
// sum (DualProj), on the dual cone of G / tr G + reg_eps I. `preference` is u, or
// null for 1/T.
bool UpGrad(const double* gramian, int size, const double* preference, double reg_eps,
            double precision, double* weights);
bool DualProj(const double* gramian, int size, const double* preference, double reg_eps,
              double precision, double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_QUADRATIC_H_

// Quadratic programs: x >= 0, and the methods that are one.
#ifndef MTL_KERAS_SOLVERS_QUADRATIC_H_
#define MTL_KERAS_SOLVERS_QUADRATIC_H_

#include <vector>

#include "solvers/problem.h"

namespace mtl_keras {

// Minimises x' A x / 2 - b' x over x >= 0 by the primal active-set method of Lawson
// and Hanson (Solving Least Squares Problems, 1974, chapter 23). `A` is positive
// semi-definite up to rounding, with diagonal entries near 1.
//
// The factor of the free entries is kept: an entry that comes in adds one row to
// it, and one that leaves has the rows after its own made anew.
class NonnegativeQp {
 public:
  // `noise` is the share of its terms below which a slope counts as zero; rounding
  // errors of the solution always do.
  explicit NonnegativeQp(const Matrix& matrix, double noise = 0.0);

  // Starts from `x` and `free` where `warm`, a feasible point such as the result
  // for a nearby `linear`, and leaves the solution there. Returns whether the
  // optimality conditions hold; they fail where there is no minimum.
  bool Solve(const double* linear, bool warm, double* x, char* free);

  // The same from a guess at the free entries, such as those for another `linear`,
  // feasible or not. Falls back on `Solve`.
  bool SolveNear(const double* linear, double* x, char* free);

 private:
  double Scale(const double* linear);
  bool Exchange(char* free);
  bool Conclude(double unit, double* x, const char* free);
  void Factor(std::size_t from);
  void Goal();
  void Slopes(const double* x, Vector* gain, Vector* noise) const;

  int size_;
  double noise_share_;
  Matrix matrix_;
  Matrix factor_;           // rows in the order of `order_`
  std::vector<int> order_;  // the free entries as they came in
  Vector linear_, goal_, gain_, noise_, work_, rest_;
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

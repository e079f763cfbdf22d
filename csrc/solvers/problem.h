// What all solvers share; the conventions are those of mtl_keras/ops/solvers.
//
// - A task whose diagonal entry is exactly zero takes no part and gets weight 0.
// - Where the matrix is not finite, all gradients are zero, or the method has no
//   solution, the weights are those of the mean (or the plain sum, for methods in
//   sum scale) and the result is not converged. Weights are always finite.
#ifndef MTL_KERAS_SOLVERS_PROBLEM_H_
#define MTL_KERAS_SOLVERS_PROBLEM_H_

#include <cmath>
#include <vector>

namespace mtl_keras {

constexpr double kEps = 2.220446049250313e-16;

// How far a gradient may be off, relative to its norm, where `precision` is the spacing
// of its dtype at 1. A gradient is a sum over samples that cancel in part, so that it
// has lost more digits than the last; the finer the dtype, the more of them.
inline double Noise(double precision) { return std::pow(precision, 2.0 / 3.0); }

using Vector = std::vector<double>;

// Square, row-major.
struct Matrix {
  int size = 0;
  Vector data;

  Matrix() = default;
  explicit Matrix(int n) : size(n), data(static_cast<std::size_t>(n) * n, 0.0) {}
  double* operator[](int row) {
    return data.data() + static_cast<std::size_t>(row) * size;
  }
  const double* operator[](int row) const {
    return data.data() + static_cast<std::size_t>(row) * size;
  }
};

inline double Dot(const double* a, const double* b, int n) {
  // Four chains, as one would wait for every addition.
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int k = 0; k < 4; ++k) sum[k] += a[i + k] * b[i + k];
  }
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// For symmetric matrices.
inline void Multiply(const Matrix& a, const double* x, double* out) {
  for (int i = 0; i < a.size; ++i) out[i] = Dot(a[i], x, a.size);
}

// A Gram matrix taken apart: gramian_ij = scale^2 n_i cosines_ij n_j. Tasks that
// take no part have norm 1 and a row of the unit matrix.
struct Problem {
  int size = 0;
  bool valid = false;  // false where there is nothing to solve
  Matrix cosines;
  Vector norms;   // relative to the largest
  double scale = 1.0;
  Vector active;  // 1 for tasks that take part, else 0
  double count = 1.0;
  Vector mean;    // 1 / count for tasks that take part

  // The Gram matrix over scale^2, zero for tasks that take no part.
  Matrix Gramian() const;
};

Problem Prepare(const double* gramian, int size);

// Removes absent tasks; puts the fallback, `factor` times the mean, in place of a
// solution that has not converged or is not finite. Returns whether it has.
bool Finish(const Problem& problem, bool converged, double factor, double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_PROBLEM_H_

#include "solvers/conic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "solvers/problem.h"
#include "solvers/quadratic.h"

namespace mtl_keras {
namespace {

constexpr int kMostSteps = 60;
// A correction of unit length with larger coefficients exists only where gradients
// cancel almost exactly.
constexpr double kLargest = 1e5;

}  // namespace

// In its dual form the update g_0 + sum_i v_i g_i, v >= 0, is the shortest correction
// for which every task's product with the update is at least t; its length grows
// with t, convexly. Newton's method finds the t at which it is c |g_0|, from above
// and therefore monotonically.
bool CaGrad(const double* gramian, int size, double c, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  Vector reciprocal(size), scaled(size), products(size), linear(size), y(size);
  for (int i = 0; i < size; ++i) {
    reciprocal[i] = problem.active[i] / problem.norms[i];
    scaled[i] = problem.mean[i] * problem.norms[i];
  }
  Multiply(problem.cosines, scaled.data(), products.data());
  for (int i = 0; i < size; ++i) products[i] *= problem.active[i];
  const double mean_length =
      std::sqrt(std::max(Dot(scaled.data(), products.data(), size), 0.0));
  const double radius = c * mean_length;
  // For t: the value of the objective at the best corner of the simplex.
  double t = std::numeric_limits<double>::infinity();
  for (int i = 0; i < size; ++i) {
    if (problem.active[i] > 0.0) {
      t = std::min(t, problem.norms[i] * (products[i] + radius));
    }
  }

  NonnegativeQp program(problem.cosines);
  std::vector<char> free(size, 0);
  double length = std::numeric_limits<double>::infinity(), before = length;
  bool solved = true;
  // A step from this close leaves rounding errors only.
  for (int step = 0; step < kMostSteps && solved &&
                     (length > radius * (1.0 + 1e-9) || before > radius * (1.0 + 1e-7));
       ++step) {
    before = length;
    // The length's derivative by t is sum_i v_i / length; the first step, where
    // there is no v yet, stays at the upper end.
    const double slope = Dot(y.data(), reciprocal.data(), size);
    if (slope != 0.0) t -= (length - radius) * length / slope;
    for (int i = 0; i < size; ++i) linear[i] = t * reciprocal[i] - products[i];
    solved = program.Solve(linear.data(), true, y.data(), free.data());
    Multiply(problem.cosines, y.data(), scaled.data());
    length = std::sqrt(std::max(Dot(y.data(), scaled.data(), size), 0.0));
  }
  const double factor = length == 0.0 ? 0.0 : radius / length;
  solved = solved && length <= radius * (1.0 + 1e-6);
  for (int i = 0; i < size; ++i) {
    y[i] *= factor;
    solved = solved && y[i] <= kLargest * radius;
    weights[i] = problem.mean[i] + y[i] * reciprocal[i];
  }
  // Without a mean gradient there is no ball; with c = 0 there is no correction.
  if (c > 0.0) {
    solved = solved && mean_length > 1e-12;
  } else {
    solved = true;
    std::copy(problem.mean.begin(), problem.mean.end(), weights);
  }
  return Finish(problem, solved, 1.0, weights);
}

}  // namespace mtl_keras

#include "solvers/conic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "solvers/problem.h"
#include "solvers/quadratic.h"

namespace mtl_keras {
namespace {

constexpr int kMaxSteps = 60;
// A correction of unit length with larger coefficients exists only where gradients
// cancel almost exactly.
constexpr double kLargest = 1e5;

// In its dual form the update g_0 + sum_i v_i g_i, v >= 0, is the shortest correction
// for which every task's product with the update is at least t; its length grows
// with t, convexly. Newton's method finds the t at which it is the radius, from above
// and therefore monotonically.
class Ball {
 public:
  Ball(const Problem& problem, double c)
      : problem_(problem),
        size_(problem.size),
        reciprocal_(size_),
        products_(size_),
        linear_(size_),
        scaled_(size_) {
    for (int i = 0; i < size_; ++i) {
      reciprocal_[i] = problem.active[i] / problem.norms[i];
      scaled_[i] = problem.mean[i] * problem.norms[i];
    }
    Multiply(problem.cosines, scaled_.data(), products_.data());
    for (int i = 0; i < size_; ++i) products_[i] *= problem.active[i];
    mean_length_ = std::sqrt(std::max(Dot(scaled_.data(), products_.data(), size_), 0.0));
    radius_ = c * mean_length_;
  }

  double mean_length() const { return mean_length_; }
  double radius() const { return radius_; }

  // The objective at the best corner of the simplex: no t is higher.
  double Corner() const {
    double t = std::numeric_limits<double>::infinity();
    for (int i = 0; i < size_; ++i) {
      if (problem_.active[i] == 0.0) continue;
      t = std::min(t, problem_.norms[i] * (products_[i] + radius_));
    }
    return t;
  }

  // The length of a correction, given by coefficients on the unit gradients.
  double Length(const Vector& y) {
    Multiply(problem_.cosines, y.data(), scaled_.data());
    return std::sqrt(std::max(Dot(y.data(), scaled_.data(), size_), 0.0));
  }

  // Starts at `t`, or after the step that its correction `y` asks for. Returns whether
  // the correction in `y` has the length of the radius and is the best.
  bool Solve(double t, Vector* y) {
    NonnegativeQp program(problem_.cosines);
    std::vector<char> free(size_);
    for (int i = 0; i < size_; ++i) free[i] = (*y)[i] > 0.0;
    double length = std::numeric_limits<double>::infinity(), before = length;
    if (std::any_of(free.begin(), free.end(), [](char f) { return f != 0; })) {
      length = Length(*y);
    }
    bool solved = true;
    // A step from this close leaves rounding errors only.
    for (int step = 0;
         step < kMaxSteps && solved &&
         (length > radius_ * (1.0 + 1e-9) || before > radius_ * (1.0 + 1e-7));
         ++step) {
      before = length;
      // The length's derivative by t is sum_i v_i / length; the first step, where
      // there is no v yet, stays where it is.
      const double slope = Dot(y->data(), reciprocal_.data(), size_);
      if (slope != 0.0) t -= (length - radius_) * length / slope;
      for (int i = 0; i < size_; ++i) linear_[i] = t * reciprocal_[i] - products_[i];
      solved = program.Solve(linear_.data(), true, y->data(), free.data());
      length = Length(*y);
    }
    const double factor = length == 0.0 ? 0.0 : radius_ / length;
    for (double& value : *y) value *= factor;
    return solved && length <= radius_ * (1.0 + 1e-6);
  }

 private:
  const Problem& problem_;
  const int size_;
  Vector reciprocal_, products_, linear_, scaled_;
  double mean_length_, radius_;
};

}  // namespace

bool CaGrad(const double* gramian, int size, double c, double precision,
            double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  std::copy(problem.mean.begin(), problem.mean.end(), weights);
  Ball ball(problem, c);
  // Without a radius there is no correction.
  if (c == 0.0 || ball.mean_length() <= 1e-12) {
    return Finish(problem, true, 1.0, weights);
  }
  Vector y(size);
  bool solved = ball.Solve(ball.Corner(), &y);
  const double largest = std::min(kLargest, 1.0 / Noise(precision));
  for (double value : y) solved = solved && value <= largest * ball.radius();
  if (!solved) {
    // No update helps all tasks. The nearest that hurts none is the best if it lies in
    // the ball; else tasks lose, t < 0, and Newton's method starts from it.
    solved = DualCone(gramian, size, problem.mean.data(), 1, precision, weights);
    for (int i = 0; i < size; ++i) {
      y[i] = (weights[i] - problem.mean[i]) * problem.norms[i];
    }
    if (!solved || ball.Length(y) <= ball.radius() * (1.0 + 1e-9)) {
      return Finish(problem, solved, 1.0, weights);
    }
    solved = ball.Solve(0.0, &y);
  }
  for (int i = 0; i < size; ++i) {
    weights[i] = problem.mean[i] + y[i] * problem.active[i] / problem.norms[i];
  }
  return Finish(problem, solved, 1.0, weights);
}

}  // namespace mtl_keras

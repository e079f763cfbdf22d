#include "solvers/root.h"

#include <algorithm>
#include <cmath>

#include "solvers/problem.h"

namespace mtl_keras {
namespace {

constexpr int kMostSteps = 100;
// Bounds min |g_w|^2 over unit gradients from below, up to a factor: roots beyond
// are the work of rounding errors. It is the largest entries that tell, as a short
// gradient against a long one rightly gets a weight far beyond its own start.
constexpr double kLargest = 1e10;
// Fractions of the way to the boundary that a step may go.
constexpr double kFractions[] = {0.95, 0.8,  0.6,  0.4,  0.25, 0.12,
                                 0.06, 0.03, 0.01, 1e-3, 1e-4};

// x^e for x > 0; the exponents of common alphas need no general power.
double Power(double x, double e) {
  if (e == 0.0) return 1.0;
  if (e == 0.5) return std::sqrt(x);
  if (e == 1.0) return x;
  return std::pow(x, e);
}

// Newton's method on relative changes of y for the convex function
// y' C y / 2 - sum_i target_i phi(y_i), phi' = y^-p.
class Newton {
 public:
  Newton(const Matrix& cosines, const Vector& target, double p)
      : cosines_(cosines),
        target_(target),
        p_(p),
        size_(cosines.size),
        system_(size_),
        pull_(size_),
        gains_(size_),
        step_(size_),
        moved_(size_) {}

  // Moves y by one step. Returns the largest relative change of a full step, not a
  // number where the system is singular.
  double Step(Vector* y) {
    Multiply(cosines_, y->data(), moved_.data());
    for (int i = 0; i < size_; ++i) {
      pull_[i] = (*y)[i] * moved_[i];
      gains_[i] = target_[i] * Power((*y)[i], 1.0 - p_);
      step_[i] = gains_[i] - pull_[i];
    }
    SolveSystem(*y);
    double change = 0.0, lowest = 0.0;
    for (double s : step_) {
      if (!std::isfinite(s)) return s - s;
      change = std::max(change, std::abs(s));
      lowest = std::min(lowest, s);
    }
    // Close to the root the objective is flat to rounding: full steps are safe.
    const double length = change >= 0.1 ? Search(*y, lowest) : 1.0;
    for (int i = 0; i < size_; ++i) (*y)[i] *= 1.0 + length * step_[i];
    return change;
  }

 private:
  // step = (diag(y) C diag(y) + p diag(gains))^-1 step.
  void SolveSystem(const Vector& y) {
    for (int i = 0; i < size_; ++i) {
      double* row = system_[i];
      for (int j = 0; j < i; ++j) {
        const double entry = y[i] * cosines_[i][j] * y[j];
        row[j] = (entry - Dot(row, system_[j], j)) * system_[j][j];
      }
      const double diagonal = y[i] * y[i] * cosines_[i][i] + p_ * gains_[i];
      row[i] = 1.0 / std::sqrt(diagonal - Dot(row, row, i));
      step_[i] = (step_[i] - Dot(row, step_.data(), i)) * row[i];
    }
    for (int i = size_ - 1; i >= 0; --i) {
      const double* row = system_[i];
      const double value = step_[i] *= row[i];
      for (int j = 0; j < i; ++j) step_[j] -= row[j] * value;
    }
  }

  // The best of several step lengths.
  double Search(const Vector& y, double lowest) {
    const double reach = 1.0 / std::max(-lowest, 1e-3);
    // Along the step the quadratic part is pull' s * l + s' S s * l^2 / 2.
    for (int i = 0; i < size_; ++i) moved_[i] = y[i] * step_[i];
    double linear = 0.0, square = 0.0;
    for (int i = 0; i < size_; ++i) {
      linear += pull_[i] * step_[i];
      square += moved_[i] * Dot(cosines_[i], moved_.data(), size_);
    }
    double best = std::min(0.9 * reach, 1.0);
    double least = linear * best + 0.5 * square * best * best - Gain(best);
    for (double fraction : kFractions) {
      const double length = reach * fraction;
      const double value =
          linear * length + 0.5 * square * length * length - Gain(length);
      if (value < least) {
        least = value;
        best = length;
      }
    }
    return best;
  }

  // How much sum_i target_i phi(y_i) grows over a step of this length.
  double Gain(double length) const {
    double sum = 0.0;
    if (p_ == 1.0) {
      // One logarithm for many factors.
      double product = 1.0;
      for (int i = 0; i < size_; ++i) {
        product *= 1.0 + length * step_[i];
        if (product < 1e-100 || product > 1e100) {
          sum += std::log(product);
          product = 1.0;
        }
      }
      return target_[0] * (sum + std::log(product));
    }
    for (int i = 0; i < size_; ++i) {
      sum += gains_[i] * (Power(1.0 + length * step_[i], 1.0 - p_) - 1.0);
    }
    return sum / (1.0 - p_);
  }

  const Matrix& cosines_;
  const Vector& target_;
  const double p_;
  const int size_;
  Matrix system_;
  Vector pull_, gains_, step_, moved_;
};

}  // namespace

bool PowerRoot(const double* gramian, int size, double alpha, double* weights) {
  const double p = 1.0 / alpha;
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, problem.count, weights);

  // With y = norms * w: cosines y = target * y^-p, up to a common factor. Tasks that
  // take no part are equations of their own. For p = 1 all targets are 1.
  Vector target(size), start(size), y(size);
  double logs = 0.0;
  for (int i = 0; i < size; ++i) {
    target[i] = std::pow(problem.norms[i], p - 1.0);
    logs += std::log(target[i]);
  }
  const double common = std::exp(logs / size);
  // The root for orthogonal gradients, at the best common length.
  double square = 0.0, gains = 0.0;
  for (int i = 0; i < size; ++i) {
    target[i] /= common;
    start[i] = std::pow(target[i], 1.0 / (1.0 + p));
    square += start[i] * start[i];
    gains += target[i] * std::pow(start[i], 1.0 - p);
  }
  Multiply(problem.cosines, start.data(), y.data());
  const double curvature =
      std::max(Dot(start.data(), y.data(), size), 1e-3 * square);
  const double length = std::pow(gains / curvature, 1.0 / (1.0 + p));
  for (int i = 0; i < size; ++i) y[i] = start[i] * length;

  const double bound = *std::max_element(start.begin(), start.end()) *
                       std::pow(kLargest, 1.0 / (1.0 + p));
  Newton newton(problem.cosines, target, p);
  double change = 1.0;
  bool alive = true;
  for (int step = 0; step < kMostSteps && alive && change > 1e-8; ++step) {
    change = newton.Step(&y);
    alive = std::isfinite(change) && *std::max_element(y.begin(), y.end()) < bound;
  }
  const double back = std::pow(common, 1.0 / (1.0 + p));
  const double scale = std::pow(problem.scale, 2.0 / (1.0 + p));
  for (int i = 0; i < size; ++i) weights[i] = y[i] * back / problem.norms[i] / scale;
  return Finish(problem, alive && change <= 1e-6, problem.count, weights);
}

}  // namespace mtl_keras

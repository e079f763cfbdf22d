#include "solvers/root.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "solvers/problem.h"

namespace mtl_keras {
namespace {

constexpr int kMaxSteps = 200;
// A sum of gradients shorter than this, for a largest term of length 1, counts as zero:
// roots beyond are the work of rounding errors.
constexpr double kCancelled = 1e-5;
// Keeps the system regular where gradients are dependent and their terms underflow.
constexpr double kRidge = 1e-13;
// Shares of a full step that are tried.
constexpr double kFractions[] = {1.0, 0.5, 0.25, 0.1, 0.03, 0.01};
// Exponents are kept within the range of a double.
constexpr double kLargestLog = 600.0;

double Exponential(double log) { return std::exp(std::min(log, kLargestLog)); }

// Newton's method for the convex function y' C y / 2 - sum_i target_i phi(y_i),
// phi' = y^-p, in the logarithms of y and of q = target * y^-p: neither of them
// leaves the range of a double, whatever p and the norms are.
class Newton {
 public:
  Newton(const Matrix& cosines, const Vector& log_target, double p)
      : cosines_(cosines),
        log_target_(log_target),
        p_(p),
        size_(cosines.size),
        system_(size_),
        y_(size_),
        products_(size_),
        q_(size_),
        damping_(size_),
        step_(size_),
        moves_(size_),
        trial_(size_) {}

  // Moves the logarithms of y by one step.
  void Step(Vector* log_y) {
    double parts_exceeded = 0.0;
    square_ = 0.0;
    largest_ = 0.0;
    for (int i = 0; i < size_; ++i) y_[i] = std::exp((*log_y)[i]);
    for (int i = 0; i < size_; ++i) {
      double product = 0.0, parts = 0.0;
      for (int j = 0; j < size_; ++j) {
        const double term = cosines_[i][j] * y_[j];
        product += term;
        parts += std::abs(term);
      }
      products_[i] = product;
      square_ += y_[i] * product;
      largest_ = std::max(largest_, y_[i]);
      const double log_q = log_target_[i] - p_ * (*log_y)[i];
      q_[i] = Exponential(log_q);
      const double residual = q_[i] - product;
      parts_exceeded = std::max(
          parts_exceeded, std::abs(residual) - 4.0 * size_ * kEps * (q_[i] + parts));
      damping_[i] =
          1.0 / std::sqrt(1.0 + kRidge + p_ * Exponential(log_q - (*log_y)[i]));
      step_[i] = damping_[i] * residual;
    }
    SolveSystem();
    change_ = 0.0;
    for (int i = 0; i < size_; ++i) {
      step_[i] *= damping_[i] / y_[i];
      if (!std::isfinite(step_[i])) change_ = std::numeric_limits<double>::quiet_NaN();
      change_ = std::abs(step_[i]) > change_ ? std::abs(step_[i]) : change_;
    }
    exact_ = parts_exceeded <= 0.0;
    if (exact_ || !std::isfinite(change_)) return;
    // Close to the root the objective is flat to rounding: full steps are safe.
    Move(*log_y, change_ >= 0.1 ? Search(*log_y) : 1.0);
    for (int i = 0; i < size_; ++i) (*log_y)[i] += moves_[i];
  }

  // The largest relative change of y in a full step, not a number where the system is
  // singular.
  double change() const { return change_; }
  // Whether the equation held up to rounding before the step.
  bool exact() const { return exact_; }
  // |sum_i y_i u_i|^2 over the unit gradients u, relative to the largest term.
  double relative_square() const { return square_ / (largest_ * largest_); }

 private:
  // step = (D C D + I - D^2)^-1 step for the damping D: Newton's system for relative
  // changes of y, scaled to a diagonal of 1.
  void SolveSystem() {
    for (int i = 0; i < size_; ++i) {
      double* row = system_[i];
      for (int j = 0; j < i; ++j) {
        const double entry = damping_[i] * cosines_[i][j] * damping_[j];
        row[j] = (entry - Dot(row, system_[j], j)) * system_[j][j];
      }
      row[i] = 1.0 / std::sqrt(1.0 - Dot(row, row, i));
      step_[i] = (step_[i] - Dot(row, step_.data(), i)) * row[i];
    }
    for (int i = size_ - 1; i >= 0; --i) {
      const double* row = system_[i];
      const double value = step_[i] *= row[i];
      for (int j = 0; j < i; ++j) step_[j] -= row[j] * value;
    }
  }

  // Sets `moves_` to the changes of log y for a share of the step. Upwards y moves as
  // in the linear model. Downwards it does so too unless that takes q beyond both the
  // linear model of q and the present product: q may grow by any power there.
  void Move(const Vector& log_y, double share) {
    for (int i = 0; i < size_; ++i) {
      const double step = share * step_[i];
      if (step > 0.0) {
        moves_[i] = std::log1p(step);
        continue;
      }
      double log_q = log_target_[i] - p_ * log_y[i] + std::log1p(-p_ * step);
      if (products_[i] > 0.0) log_q = std::max(log_q, std::log(products_[i]));
      double move = (log_target_[i] - log_q) / p_ - log_y[i];
      if (step > -1.0) move = std::max(move, std::log1p(step));
      moves_[i] = std::min(move, 0.0);
    }
  }

  // The largest share of the step whose objective is the least up to rounding.
  double Search(const Vector& log_y) {
    constexpr int kCount = sizeof(kFractions) / sizeof(kFractions[0]);
    double values[kCount];
    double least = std::numeric_limits<double>::infinity(), size = 0.5 * square_;
    for (int i = 0; i < size_; ++i) size += q_[i] * y_[i];
    for (int k = 0; k < kCount; ++k) {
      Move(log_y, kFractions[k]);
      double gain = 0.0;
      for (int i = 0; i < size_; ++i) {
        trial_[i] = y_[i] * std::exp(moves_[i]);
        gain += q_[i] * y_[i] *
                (p_ == 1.0 ? moves_[i]
                           : std::expm1((1.0 - p_) * moves_[i]) / (1.0 - p_));
      }
      double square = 0.0;
      for (int i = 0; i < size_; ++i) {
        square += trial_[i] * Dot(cosines_[i], trial_.data(), size_);
      }
      values[k] = 0.5 * (square - square_) - gain;
      if (values[k] < least) least = values[k];
    }
    for (int k = 0; k < kCount; ++k) {
      if (values[k] <= least + 1e-13 * size) return kFractions[k];
    }
    return kFractions[kCount - 1];
  }

  const Matrix& cosines_;
  const Vector& log_target_;
  const double p_;
  const int size_;
  Matrix system_;
  Vector y_, products_, q_, damping_, step_, moves_, trial_;
  double square_ = 0.0, largest_ = 0.0, change_ = 0.0;
  bool exact_ = false;
};

}  // namespace

bool PowerRoot(const double* gramian, int size, double alpha, const double* shares,
               double precision, double* weights) {
  const double p = 1.0 / alpha;
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, problem.count, weights);

  // With y = norms * w: cosines y = target * y^-p, up to a common factor. Tasks that
  // take no part are equations of their own. For p = 1 the targets are
  // the shares.
  Vector log_target(size), log_y(size), start(size), products(size);
  double common = 0.0;
  for (int i = 0; i < size; ++i) {
    log_target[i] = (p - 1.0) * std::log(problem.norms[i]);
    if (shares != nullptr && problem.active[i] != 0.0) {
      log_target[i] += std::log(shares[i]);
    }
    common += log_target[i] / size;
  }
  // The root for orthogonal gradients, at the best common length.
  double square = 0.0;
  for (int i = 0; i < size; ++i) {
    log_target[i] -= common;
    log_y[i] = log_target[i] / (1.0 + p);
  }
  const double highest = *std::max_element(log_y.begin(), log_y.end());
  for (int i = 0; i < size; ++i) {
    start[i] = std::exp(log_y[i] - highest);
    square += start[i] * start[i];
  }
  Multiply(problem.cosines, start.data(), products.data());
  const double curvature =
      std::max(Dot(start.data(), products.data(), size), 1e-3 * square);
  for (double& log : log_y) log += std::log(square / curvature) / (1.0 + p);

  const double noise = std::max(kCancelled, Noise(precision));
  Newton newton(problem.cosines, log_target, p);
  bool solved = false;
  for (int step = 0; step < kMaxSteps && !solved; ++step) {
    newton.Step(&log_y);
    // Gradients that cancel at positive weights prove the point Pareto-stationary.
    if (!std::isfinite(newton.change()) || newton.relative_square() <= noise * noise) {
      return Finish(problem, false, problem.count, weights);
    }
    solved = newton.change() <= 1e-8 || newton.exact();
  }
  solved = solved || newton.change() <= 1e-6;
  for (int i = 0; i < size; ++i) {
    const double log = log_y[i] + (common - 2.0 * std::log(problem.scale)) / (1.0 + p);
    weights[i] = std::exp(log - std::log(problem.norms[i]));
  }
  return Finish(problem, solved, problem.count, weights);
}

}  // namespace mtl_keras

#include "solvers/quadratic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "solvers/eigenvalue.h"
#include "solvers/regular_qp.h"

namespace mtl_keras {
namespace {

// Keeps every factorisation regular where gradients are linearly dependent. One
// step of iterative refinement takes its effect out of the directions that count.
constexpr double kRidge = 1e-12;
// Entries beyond this, for a linear term of size 1, come from the ridge alone: the
// objective has no minimum.
constexpr double kLargest = 1e-2 / kRidge;

// Whether all eigenvalues lie above minus half a ridge, up to rounding.
bool IsNearlyDefinite(const Matrix& matrix) {
  Matrix factor(matrix.size);
  for (int i = 0; i < matrix.size; ++i) {
    double* row = factor[i];
    for (int j = 0; j < i; ++j) {
      row[j] = (matrix[i][j] - Dot(row, factor[j], j)) * factor[j][j];
    }
    const double pivot = matrix[i][i] + 0.5 * kRidge - Dot(row, row, i);
    if (!(pivot > 0.0)) return false;
    row[i] = 1.0 / std::sqrt(pivot);
  }
  return true;
}

}  // namespace

NonnegativeQp::NonnegativeQp(const Matrix& matrix, double noise)
    : size_(matrix.size),
      noise_share_(std::max(noise, 4.0 * matrix.size * kEps)),
      matrix_(matrix),
      factor_(matrix.size),
      linear_(size_),
      goal_(size_),
      gain_(size_),
      noise_(size_),
      work_(size_),
      rest_(size_) {
  order_.reserve(size_);
  // Rounding may leave eigenvalues below zero: they are lifted.
  if (!IsNearlyDefinite(matrix)) {
    const double lift = 2.0 * std::max(-Decompose(matrix).values[0], 0.0);
    for (int i = 0; i < size_; ++i) matrix_[i][i] += lift;
  }
}

// Makes the rows of the factor from `from` on; its diagonal holds reciprocals.
void NonnegativeQp::Factor(std::size_t from) {
  for (std::size_t i = from; i < order_.size(); ++i) {
    double* row = factor_[static_cast<int>(i)];
    const double* source = matrix_[order_[i]];
    for (std::size_t j = 0; j < i; ++j) {
      const double* other = factor_[static_cast<int>(j)];
      row[j] = (source[order_[j]] - Dot(row, other, static_cast<int>(j))) * other[j];
    }
    const double pivot = source[order_[i]] + kRidge - Dot(row, row, static_cast<int>(i));
    row[i] = 1.0 / std::sqrt(pivot);  // not a number where the pivot is negative
  }
}

// The minimum over the free entries, others held at zero.
void NonnegativeQp::Goal() {
  const int n = static_cast<int>(order_.size());
  auto substitute = [&](Vector* x) {
    for (int i = 0; i < n; ++i) {
      const double* row = factor_[i];
      (*x)[i] = ((*x)[i] - Dot(row, x->data(), i)) * row[i];
    }
    for (int i = n - 1; i >= 0; --i) {
      const double* row = factor_[i];
      const double value = (*x)[i] *= row[i];
      for (int j = 0; j < i; ++j) (*x)[j] -= row[j] * value;
    }
  };
  for (int i = 0; i < n; ++i) work_[i] = linear_[order_[i]];
  substitute(&work_);
  for (int i = 0; i < n; ++i) {
    const double* row = matrix_[order_[i]];
    double rest = linear_[order_[i]];
    for (int j = 0; j < n; ++j) rest -= row[order_[j]] * work_[j];
    rest_[i] = rest;
  }
  substitute(&rest_);
  std::fill(goal_.begin(), goal_.end(), 0.0);
  for (int i = 0; i < n; ++i) goal_[order_[i]] = work_[i] + rest_[i];
}

// The negative gradient, and the size of its errors.
void NonnegativeQp::Slopes(const double* x, Vector* gain, Vector* noise) const {
  for (int i = 0; i < size_; ++i) {
    double product = 0.0, size = 0.0;
    for (int j : order_) {
      const double term = matrix_[i][j] * x[j];
      product += term;
      size += std::abs(term);
    }
    (*gain)[i] = linear_[i] - product;
    (*noise)[i] = noise_share_ * (std::abs(linear_[i]) + size);
  }
}

// Brings the linear term to size 1. Returns the unit of the solution.
double NonnegativeQp::Scale(const double* linear) {
  double largest = 0.0;
  for (int i = 0; i < size_; ++i) largest = std::max(largest, std::abs(linear[i]));
  const double unit = largest > 0.0 ? largest : 1.0;
  for (int i = 0; i < size_; ++i) linear_[i] = linear[i] / unit;
  return unit;
}

// Block pivoting (Portugal, Judice and Vicente, Mathematics of Computation 63, 1994):
// every entry that breaks a condition changes sides, all at once. Ends in a few steps
// whatever the size, or goes in circles and gives up. Returns whether the minimum
// over the free entries, in `goal_`, is the solution.
bool NonnegativeQp::Exchange(char* free) {
  constexpr int kPatience = 3;
  int fewest = size_ + 1;
  for (int patience = kPatience; patience > 0;) {
    order_.clear();
    for (int i = 0; i < size_; ++i) {
      if (free[i]) order_.push_back(i);
    }
    Factor(0);
    Goal();
    Slopes(goal_.data(), &gain_, &noise_);
    int wrong = 0;
    for (int i = 0; i < size_; ++i) {
      const bool changes = free[i] ? !(goal_[i] > 0.0) : gain_[i] > noise_[i];
      if (!changes) continue;
      free[i] = !free[i];
      ++wrong;
    }
    if (wrong == 0) return true;
    patience = wrong < fewest ? kPatience : patience - 1;
    fewest = std::min(fewest, wrong);
  }
  return false;
}

// Scales the solution back. Returns whether the optimality conditions hold.
bool NonnegativeQp::Conclude(double unit, double* x, const char* free) {
  bool solved = true;
  for (int i = 0; i < size_; ++i) x[i] = free[i] ? std::max(x[i], 0.0) : 0.0;
  Slopes(x, &gain_, &noise_);
  const double rounding = 4.0 * size_ * kEps / noise_share_;
  for (int i = 0; i < size_; ++i) {
    // Looser than the steps' own test by the error of one regular solve.
    const double violation = free[i] ? std::abs(gain_[i]) : gain_[i];
    const double slack = std::max(noise_[i], 1e4 * rounding * noise_[i]);
    solved &= violation <= slack && x[i] < kLargest;
    x[i] *= unit;
  }
  return solved;
}

bool NonnegativeQp::SolveNear(const double* linear, double* x, char* free) {
  const double unit = Scale(linear);
  if (Exchange(free)) {
    std::copy(goal_.begin(), goal_.end(), x);
    if (Conclude(unit, x, free)) return true;
  }
  return Solve(linear, false, x, free);
}

bool NonnegativeQp::Solve(const double* linear, bool warm, double* x, char* free) {
  const double unit = Scale(linear);
  order_.clear();
  if (warm) {
    for (int i = 0; i < size_; ++i) {
      x[i] /= unit;
      if (free[i]) order_.push_back(i);
    }
  } else {
    std::fill_n(x, size_, 0.0);
    std::fill_n(free, size_, 0);
    const auto steepest = std::max_element(linear_.begin(), linear_.end());
    if (*steepest > 0.0) {
      order_.push_back(static_cast<int>(steepest - linear_.begin()));
      free[order_[0]] = 1;
    }
  }
  Factor(0);
  std::vector<char> barred(size_, 0);
  double best = 0.0;
  bool done = false;
  for (int step = 0; step < 6 * size_ + 20 && !done; ++step) {
    Goal();
    double length = 1.0;
    bool feasible = true;
    for (int i : order_) {
      if (goal_[i] > 0.0) continue;
      feasible = false;
      const double way = x[i] - goal_[i];
      length = std::min(length, way == 0.0 ? 0.0 : x[i] / way);
    }
    if (!feasible) {
      // Towards the goal as far as all entries stay non-negative.
      std::size_t kept = 0, first_gone = order_.size();
      for (std::size_t k = 0; k < order_.size(); ++k) {
        const int i = order_[k];
        const double way = x[i] - goal_[i];
        const bool blocking = !(goal_[i] > 0.0);
        const double room = way == 0.0 ? 0.0 : x[i] / way;
        const double moved = x[i] + length * (goal_[i] - x[i]);
        if (blocking && (room <= length || moved <= 0.0)) {
          x[i] = 0.0;
          free[i] = 0;
          // An entry that leaves as soon as it was let in came in by a rounding
          // error.
          if (length <= 0.0) barred[i] = 1;
          first_gone = std::min(first_gone, k);
        } else {
          x[i] = std::max(moved, 0.0);
          order_[kept++] = i;
        }
      }
      if (kept == order_.size()) return false;  // not-a-numbers
      order_.resize(kept);
      Factor(first_gone);
      continue;
    }
    // At the minimum over the free entries: let in the steepest of the others.
    double value = 0.0;
    for (int i : order_) value += linear_[i] * goal_[i];
    if (value > best) {
      best = value;
      std::fill(barred.begin(), barred.end(), 0);
    }
    Slopes(goal_.data(), &gain_, &noise_);
    int enters = -1;
    for (int i = 0; i < size_; ++i) {
      if (free[i] || barred[i] || !(gain_[i] > noise_[i])) continue;
      if (enters < 0 || gain_[i] > gain_[enters]) enters = i;
    }
    std::copy(goal_.begin(), goal_.end(), x);
    done = enters < 0;
    if (!done) {
      free[enters] = 1;
      order_.push_back(enters);
      Factor(order_.size() - 1);
    }
  }
  return Conclude(unit, x, free);
}

bool MinNorm(const double* gramian, int size, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  // With x = norms * w up to a factor, and r = 1 / norms, w lies on the simplex
  // where r' x = 1. Adding (r' x - 1)^2 to the objective changes the length of its
  // minimiser only, and unlike the constraint it keeps the minimum finite where the
  // least norm is zero.
  Vector reciprocal(size);
  for (int i = 0; i < size; ++i) reciprocal[i] = problem.active[i] / problem.norms[i];
  const double largest = *std::max_element(reciprocal.begin(), reciprocal.end());
  for (double& r : reciprocal) r /= largest;
  Matrix matrix = problem.cosines;
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) matrix[i][j] += reciprocal[i] * reciprocal[j];
  }
  std::vector<char> free(size);
  const bool solved =
      NonnegativeQp(matrix).Solve(reciprocal.data(), false, weights, free.data());
  double total = 0.0;
  for (int i = 0; i < size; ++i) total += weights[i] *= reciprocal[i];
  for (int i = 0; i < size; ++i) weights[i] = total == 0.0 ? 0.0 : weights[i] / total;
  return Finish(problem, solved, 1.0, weights);
}

bool DualCone(const double* gramian, int size, const double* lower, int batch,
              double precision, double* out) {
  const Problem problem = Prepare(gramian, size);
  for (int i = 0; i < batch * size; ++i) {
    out[i] = problem.active[i % size] > 0.0 ? lower[i] : 0.0;
  }
  if (!problem.valid) return false;
  const double noise = std::max(Noise(precision), 4.0 * size * kEps);
  RegularQp regular(problem.cosines, noise);
  std::optional<NonnegativeQp> general;  // made when the other one does not do
  Vector linear(size);
  Vector raised(static_cast<std::size_t>(batch) * size);
  std::vector<int> bounded;
  std::vector<char> free(size);
  for (int b = 0; b < batch; ++b) {
    // v = u + z / norms with z >= 0.
    const double* u = out + b * size;
    double* z = raised.data() + b * size;
    bounded.clear();
    for (int i = 0; i < size; ++i) {
      if (u[i] != 0.0) bounded.push_back(i);
    }
    for (int i = 0; i < size; ++i) {
      double product = 0.0, parts = 0.0;
      for (int j : bounded) {
        const double term = problem.cosines[i][j] * u[j] * problem.norms[j];
        product += term;
        parts += std::abs(term);
      }
      // Where the bounds' own gradients cancel, what is left is noise: no conflict.
      const bool conflict = std::abs(product) > noise * parts;
      linear[i] = conflict ? -product * problem.active[i] : 0.0;
    }
    if (!regular.regular() || !regular.Solve(linear.data(), z)) {
      if (!general) general.emplace(problem.cosines, noise);
      // The tasks that a bound conflicts with are a good guess at those to raise.
      for (int i = 0; i < size; ++i) free[i] = linear[i] > 0.0;
      if (!general->SolveNear(linear.data(), z, free.data())) return false;
    }
    for (int i = 0; i < size; ++i) {
      z[i] = (u[i] + z[i] / problem.norms[i]) * problem.active[i];
      if (!std::isfinite(z[i])) return false;
    }
  }
  std::copy(raised.begin(), raised.end(), out);
  return true;
}

namespace {

// Divides by the trace and adds `reg_eps` where tasks take part.
Matrix Regularised(const Problem& problem, double reg_eps) {
  Matrix matrix = problem.Gramian();
  double trace = 0.0;
  for (int i = 0; i < problem.size; ++i) trace += matrix[i][i];
  for (double& value : matrix.data) value /= trace;
  for (int i = 0; i < problem.size; ++i) matrix[i][i] += reg_eps * problem.active[i];
  return matrix;
}

// With more regularisation than noise the solution is a smooth function of the
// gradients, and nothing needs deciding.
double PrecisionOf(double precision, double reg_eps) {
  const double noise = Noise(precision);
  return reg_eps > noise * noise ? kEps : precision;
}

}  // namespace

bool UpGrad(const double* gramian, int size, const double* preference, double reg_eps,
            double precision, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  const Matrix matrix = Regularised(problem, reg_eps);
  const double* u = preference ? preference : problem.mean.data();
  Matrix rows(size);
  for (int i = 0; i < size; ++i) rows[i][i] = u[i];
  Matrix projected(size);
  const bool converged =
      DualCone(matrix.data.data(), size, rows.data.data(), size,
               PrecisionOf(precision, reg_eps), projected.data.data());
  for (int j = 0; j < size; ++j) {
    weights[j] = 0.0;
    for (int i = 0; i < size; ++i) weights[j] += projected[i][j];
  }
  return Finish(problem, converged, 1.0, weights);
}

bool DualProj(const double* gramian, int size, const double* preference, double reg_eps,
              double precision, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  const Matrix matrix = Regularised(problem, reg_eps);
  const double* u = preference ? preference : problem.mean.data();
  const bool converged = DualCone(matrix.data.data(), size, u, 1,
                                  PrecisionOf(precision, reg_eps), weights);
  return Finish(problem, converged, 1.0, weights);
}

}  // namespace mtl_keras

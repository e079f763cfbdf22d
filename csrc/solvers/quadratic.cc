#include "solvers/quadratic.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "solvers/eigenvalue.h"

namespace mtl_keras {
namespace {

// Keeps every factorisation regular where gradients are linearly dependent. One
// step of iterative refinement takes its effect out of the directions that count.
constexpr double kRidge = 1e-12;
// Entries beyond this, for a linear term of size 1, come from the ridge alone: the
// objective has no minimum.
constexpr double kLargest = 1e-2 / kRidge;

// Sweeps of the guess at the free entries; further ones cost more than a pivot.
constexpr int kSweeps = 3;
// Beyond this square of a pivot's reciprocal the inverse has lost too many digits.
constexpr double kLargestInverse = 1e6;

}  // namespace

NonnegativeQp::NonnegativeQp(const Matrix& matrix, double noise)
    : size_(matrix.size),
      stride_(matrix.size + kFactorPadding),
      noise_share_(std::max(noise, 4.0 * matrix.size * kEps)),
      simd_(BestSimd()),
      matrix_(matrix),
      factor_(size_ * stride_),
      whole_(size_),
      linear_(size_),
      goal_(size_),
      gain_(size_),
      noise_(size_),
      work_(size_),
      rest_(size_),
      magnitudes_(size_),
      step_(size_),
      pointers_(size_) {
  order_.reserve(size_);
  // Rounding may leave eigenvalues below zero: they are lifted.
  if (!IsNearlyDefinite()) {
    invertible_ = false;
    const double lift = 2.0 * std::max(-SmallestEigenvalue(matrix), 0.0);
    for (int i = 0; i < size_; ++i) matrix_[i][i] += lift;
  }
  sizes_ = matrix_;
  for (double& value : sizes_.data) value = std::abs(value);
}

// Whether all eigenvalues lie above minus half a ridge, up to rounding.
bool NonnegativeQp::IsNearlyDefinite() {
  for (int i = 0; i < size_; ++i) {
    std::copy_n(matrix_[i], size_, &factor_[i * stride_]);
    factor_[i * stride_ + i] += 0.5 * kRidge;
  }
  simd_.factorise(factor_.data(), stride_, 0, size_);
  for (int i = 0; i < size_; ++i) {
    const double reciprocal = factor_[i * stride_ + i];
    if (!std::isfinite(reciprocal)) return false;
    if (reciprocal * reciprocal > kLargestInverse) invertible_ = false;
  }
  return true;
}

void NonnegativeQp::Invert() {
  IsNearlyDefinite();  // makes the factor of the whole matrix
  inverse_ = Matrix(size_);
  for (int i = 0; i < size_; ++i) {
    inverse_[i][i] = 1.0;
    simd_.substitute(factor_.data(), stride_, size_, inverse_[i]);
  }
}

// Makes the columns of the factor of a part of `matrix` from `from` on.
void NonnegativeQp::Factor(const Matrix& matrix, const std::vector<int>& entries,
                           double ridge, std::size_t from) {
  const int n = static_cast<int>(entries.size()), first = static_cast<int>(from);
  for (int i = 0; i < n; ++i) {
    const double* source = matrix[entries[i]];
    double* row = &factor_[i * stride_];
    for (int j = std::max(i, first); j < n; ++j) row[j] = source[entries[j]];
    if (i >= first) row[i] += ridge;
  }
  simd_.factorise(factor_.data(), stride_, first, n);
}

void NonnegativeQp::AddRows(const int* rows, const double* weights, int count,
                            double* sum, double* sizes) {
  if (count == 0) {
    std::fill_n(sum, size_, 0.0);
    std::fill_n(sizes, size_, 0.0);
    return;
  }
  for (int k = 0; k < count; ++k) pointers_[k] = matrix_[rows[k]];
  simd_.combine(pointers_.data(), weights, count, DType::kDouble, 0, size_, sum);
  for (int k = 0; k < count; ++k) {
    pointers_[k] = sizes_[rows[k]];
    magnitudes_[k] = std::abs(weights[k]);
  }
  simd_.combine(pointers_.data(), magnitudes_.data(), count, DType::kDouble, 0, size_,
                sizes);
}

// The minimum over the free entries, others held at zero.
void NonnegativeQp::Goal() {
  const int n = static_cast<int>(order_.size());
  std::fill(goal_.begin(), goal_.end(), 0.0);
  if (n == 0) return;
  for (int i = 0; i < n; ++i) {
    pointers_[i] = matrix_[order_[i]];
    work_[i] = linear_[order_[i]];
  }
  simd_.substitute(factor_.data(), stride_, n, work_.data());
  simd_.combine(pointers_.data(), work_.data(), n, DType::kDouble, 0, size_,
                gain_.data());
  for (int i = 0; i < n; ++i) rest_[i] = linear_[order_[i]] - gain_[order_[i]];
  simd_.substitute(factor_.data(), stride_, n, rest_.data());
  for (int i = 0; i < n; ++i) goal_[order_[i]] = work_[i] + rest_[i];
}

// The negative gradient, in `gain_`, and the size of its errors, in `noise_`.
void NonnegativeQp::Slopes(const double* x) {
  const int n = static_cast<int>(order_.size());
  for (int i = 0; i < n; ++i) work_[i] = x[order_[i]];
  AddRows(order_.data(), work_.data(), n, gain_.data(), noise_.data());
  for (int i = 0; i < size_; ++i) {
    gain_[i] = linear_[i] - gain_[i];
    noise_[i] = noise_share_ * (std::abs(linear_[i]) + noise_[i]);
  }
}

// Adds the multiples of the inverse's rows to `x` that bring the held entries to 0,
// which leaves the slopes at the free ones as they are. The multiples, in `rest_`, are
// the slopes at the held entries, negated. The factor is that of the held entries.
void NonnegativeQp::Release(Vector* x) {
  const int n = static_cast<int>(held_.size());
  if (n == 0) return;
  for (int i = 0; i < n; ++i) {
    pointers_[i] = inverse_[held_[i]];
    rest_[i] = -(*x)[held_[i]];
  }
  simd_.substitute(factor_.data(), stride_, n, rest_.data());
  simd_.combine(pointers_.data(), rest_.data(), n, DType::kDouble, 0, size_,
                work_.data());
  for (int i = 0; i < size_; ++i) (*x)[i] += work_[i];
  for (int i : held_) (*x)[i] = 0.0;
}
// `Goal` and `Slopes` at it, up to the errors of the inverse.
void NonnegativeQp::GoalFromInverse() {
  goal_ = whole_;
  Factor(inverse_, held_, 0.0, 0);
  Release(&goal_);
  std::fill(gain_.begin(), gain_.end(), 0.0);
  for (int i = 0; i < size_; ++i) magnitudes_[i] = std::abs(goal_[i]);
  for (std::size_t k = 0; k < held_.size(); ++k) {
    const int i = held_[k];
    gain_[i] = -rest_[k];
    const double terms = std::abs(linear_[i]) +
                         Dot(sizes_[i], magnitudes_.data(), size_);
    noise_[i] = noise_share_ * terms;
  }
}

// Takes the errors of the inverse out of the goal. Returns whether they have gone and
// the goal is the solution.
bool NonnegativeQp::Refine() {
  Slopes(goal_.data());
  for (std::size_t k = 0; k < order_.size(); ++k) {
    pointers_[k] = inverse_[order_[k]];
    work_[k] = gain_[order_[k]];
  }
  simd_.combine(pointers_.data(), work_.data(), static_cast<int>(order_.size()),
                DType::kDouble, 0, size_, step_.data());
  Release(&step_);
  for (int i = 0; i < size_; ++i) goal_[i] += step_[i];
  Slopes(goal_.data());
  const double rounding = 4.0 * size_ * kEps / noise_share_;
  for (int i : order_) {
    if (!(goal_[i] > 0.0 && std::abs(gain_[i]) <= rounding * noise_[i])) return false;
  }
  for (int i : held_) {
    if (!(gain_[i] <= noise_[i])) return false;
  }
  return true;
}

// Cyclic descent along each entry: the signs settle long before the values.
void NonnegativeQp::Guess(char* free) {
  std::fill(goal_.begin(), goal_.end(), 0.0);
  std::copy(linear_.begin(), linear_.end(), gain_.begin());
  std::fill_n(free, size_, 0);
  int changed = 1;
  for (int sweep = 0; sweep < kSweeps && changed > 0; ++sweep) {
    simd_.descend(matrix_.data.data(), size_, goal_.data(), gain_.data());
    changed = 0;
    for (int i = 0; i < size_; ++i) {
      const char positive = goal_[i] > 0.0;
      changed += positive != free[i];
      free[i] = positive;
    }
  }
}

// Block pivoting (Portugal, Judice and Vicente, Mathematics of Computation 63, 1994):
// every entry that breaks a condition changes sides, all at once. Ends in a few steps
// whatever the size, or goes in circles and gives up. Returns whether the minimum
// over the free entries, in `goal_`, is the solution.
bool NonnegativeQp::Exchange(char* free) {
  constexpr int kPatience = 3;
  int fewest = size_ + 1;
  bool exact = !invertible_, started = false;
  for (int patience = kPatience; patience > 0;) {
    order_.clear();
    held_.clear();
    for (int i = 0; i < size_; ++i) (free[i] ? order_ : held_).push_back(i);
    const bool by_inverse = !exact && 2 * held_.size() < order_.size();
    if (by_inverse) {
      if (!started) {
        if (inverse_.size == 0) Invert();
        for (int i = 0; i < size_; ++i) pointers_[i] = inverse_[i];
        simd_.combine(pointers_.data(), linear_.data(), size_, DType::kDouble, 0, size_,
                      whole_.data());
        started = true;
      }
      GoalFromInverse();
    } else {
      Factor(matrix_, order_, kRidge, 0);
      Goal();
      Slopes(goal_.data());
    }
    int wrong = 0;
    for (int i = 0; i < size_; ++i) {
      const bool changes = free[i] ? !(goal_[i] > 0.0) : gain_[i] > noise_[i];
      if (!changes) continue;
      free[i] = !free[i];
      ++wrong;
    }
    if (wrong == 0) {
      if (!by_inverse || Refine()) return true;
      exact = true;
      continue;
    }
    patience = wrong < fewest ? kPatience : patience - 1;
    fewest = std::min(fewest, wrong);
  }
  return false;
}

// Brings the linear term to size 1. Returns the unit of the solution.
double NonnegativeQp::Scale(const double* linear) {
  double largest = 0.0;
  for (int i = 0; i < size_; ++i) largest = std::max(largest, std::abs(linear[i]));
  const double unit = largest > 0.0 ? largest : 1.0;
  for (int i = 0; i < size_; ++i) linear_[i] = linear[i] / unit;
  return unit;
}

// Scales the solution, whose slopes are known, back. Returns whether the optimality
// conditions hold.
bool NonnegativeQp::Conclude(double unit, double* x, const char* free) {
  bool solved = true;
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
  Guess(free);
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
  Factor(matrix_, order_, kRidge, 0);
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
      Factor(matrix_, order_, kRidge, first_gone);
      continue;
    }
    // At the minimum over the free entries: let in the steepest of the others.
    double value = 0.0;
    for (int i : order_) value += linear_[i] * goal_[i];
    if (value > best) {
      best = value;
      std::fill(barred.begin(), barred.end(), 0);
    }
    Slopes(goal_.data());
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
      Factor(matrix_, order_, kRidge, order_.size() - 1);
    }
  }
  for (int i = 0; i < size_; ++i) x[i] = free[i] ? std::max(x[i], 0.0) : 0.0;
  Slopes(x);
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
  NonnegativeQp program(problem.cosines, noise);
  Vector bounds(size), linear(size), parts(size);
  Vector raised(static_cast<std::size_t>(batch) * size);
  std::vector<int> bounded;
  std::vector<char> free(size);
  for (int b = 0; b < batch; ++b) {
    // v = u + z / norms with z >= 0.
    const double* u = out + b * size;
    double* z = raised.data() + b * size;
    bounded.clear();
    for (int i = 0; i < size; ++i) {
      if (u[i] == 0.0) continue;
      bounds[bounded.size()] = u[i] * problem.norms[i];
      bounded.push_back(i);
    }
    program.AddRows(bounded.data(), bounds.data(), static_cast<int>(bounded.size()),
                    linear.data(), parts.data());
    for (int i = 0; i < size; ++i) {
      // Where the bounds' own gradients cancel, what is left is noise: no conflict.
      const bool conflict = std::abs(linear[i]) > noise * parts[i];
      linear[i] = conflict ? -linear[i] * problem.active[i] : 0.0;
    }
    if (!program.SolveNear(linear.data(), z, free.data())) return false;
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

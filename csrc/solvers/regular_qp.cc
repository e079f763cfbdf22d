#include "solvers/regular_qp.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mtl_keras {
namespace {

// Sweeps of the guess at the free entries; further ones cost more than a pivot.
constexpr int kSweeps = 3;
// A pivot below this, for a diagonal near 1, and the inverse loses too many digits.
constexpr double kSmallestPivot = 1e-6;

}  // namespace

RegularQp::RegularQp(const Matrix& matrix, double noise)
    : size_(matrix.size),
      stride_(matrix.size + kFactorPadding),
      noise_share_(std::max(noise, 4.0 * matrix.size * kEps)),
      simd_(BestSimd()),
      matrix_(matrix),
      sizes_(matrix),
      factor_(size_ * stride_),
      free_(size_),
      all_(size_),
      whole_(size_),
      linear_(size_),
      goal_(size_),
      gain_(size_),
      noise_(size_),
      work_(size_),
      rest_(size_),
      step_(size_),
      pointers_(size_) {
  order_.reserve(size_);
  held_.reserve(size_);
  std::iota(all_.begin(), all_.end(), 0);
  for (double& value : sizes_.data) value = std::abs(value);
  Factor(matrix_, all_);
  regular_ = true;
  for (int i = 0; i < size_; ++i) {
    const double reciprocal = factor_[i * stride_ + i];
    // Not finite where the matrix is not definite.
    regular_ = regular_ && reciprocal * reciprocal * kSmallestPivot <= 1.0;
  }
}

// Makes the factor of a part of `matrix`.
void RegularQp::Factor(const Matrix& matrix, const std::vector<int>& entries) {
  const int n = static_cast<int>(entries.size());
  for (int i = 0; i < n; ++i) {
    const double* source = matrix[entries[i]];
    double* row = &factor_[i * stride_];
    for (int j = i; j < n; ++j) row[j] = source[entries[j]];
  }
  simd_.factorise(factor_.data(), stride_, 0, n);
}

void RegularQp::Invert() {
  Factor(matrix_, all_);
  inverse_ = Matrix(size_);
  for (int i = 0; i < size_; ++i) {
    inverse_[i][i] = 1.0;
    simd_.substitute(factor_.data(), stride_, size_, inverse_[i]);
  }
}

// Adds up rows times weights, in `sum` [T].
void RegularQp::Combine(const Matrix& matrix, const std::vector<int>& rows,
                        const double* weights, double* sum) {
  const int n = static_cast<int>(rows.size());
  if (n == 0) {
    std::fill_n(sum, size_, 0.0);
    return;
  }
  for (int k = 0; k < n; ++k) pointers_[k] = matrix[rows[k]];
  simd_.combine(pointers_.data(), weights, n, DType::kDouble, 0, size_, sum);
}

// The minimum over the free entries, others held at zero, by a factor of its own.
void RegularQp::Goal() {
  Factor(matrix_, order_);
  const int n = static_cast<int>(order_.size());
  for (int i = 0; i < n; ++i) work_[i] = linear_[order_[i]];
  simd_.substitute(factor_.data(), stride_, n, work_.data());
  std::fill(goal_.begin(), goal_.end(), 0.0);
  for (int i = 0; i < n; ++i) goal_[order_[i]] = work_[i];
}

// The negative gradient, in `gain_`, and the size of its errors, in `noise_`.
void RegularQp::Slopes(const double* x) {
  const int n = static_cast<int>(order_.size());
  for (int i = 0; i < n; ++i) work_[i] = x[order_[i]];
  Combine(matrix_, order_, work_.data(), gain_.data());
  for (int i = 0; i < n; ++i) work_[i] = std::abs(work_[i]);
  Combine(sizes_, order_, work_.data(), noise_.data());
  for (int i = 0; i < size_; ++i) {
    gain_[i] = linear_[i] - gain_[i];
    noise_[i] = noise_share_ * (std::abs(linear_[i]) + noise_[i]);
  }
}

// Adds the multiples of the inverse's rows to `x` that bring the held entries to 0,
// which leaves the slopes at the free ones as they are. The multiples, in `rest_`, are
// the slopes at the held entries, negated. The factor is that of the held entries.
void RegularQp::Release(Vector* x) {
  const int n = static_cast<int>(held_.size());
  if (n == 0) return;
  for (int i = 0; i < n; ++i) rest_[i] = -(*x)[held_[i]];
  simd_.substitute(factor_.data(), stride_, n, rest_.data());
  Combine(inverse_, held_, rest_.data(), work_.data());
  for (int i = 0; i < size_; ++i) (*x)[i] += work_[i];
  for (int i : held_) (*x)[i] = 0.0;
}

// `Goal` and the slopes at it, up to the errors of the inverse.
void RegularQp::GoalFromInverse() {
  Factor(inverse_, held_);
  goal_ = whole_;
  Release(&goal_);
  std::fill(gain_.begin(), gain_.end(), 0.0);
  for (int i = 0; i < size_; ++i) work_[i] = std::abs(goal_[i]);
  for (std::size_t k = 0; k < held_.size(); ++k) {
    const int i = held_[k];
    gain_[i] = -rest_[k];
    noise_[i] = noise_share_ * (std::abs(linear_[i]) + Dot(sizes_[i], work_.data(), size_));
  }
}

// Takes the errors of the inverse out of the goal. Returns whether it is the solution.
bool RegularQp::Refine() {
  Slopes(goal_.data());
  for (std::size_t k = 0; k < order_.size(); ++k) work_[k] = gain_[order_[k]];
  Combine(inverse_, order_, work_.data(), step_.data());
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
void RegularQp::Guess() {
  std::fill(goal_.begin(), goal_.end(), 0.0);
  gain_ = linear_;
  std::fill(free_.begin(), free_.end(), 0);
  int changed = 1;
  for (int sweep = 0; sweep < kSweeps && changed > 0; ++sweep) {
    simd_.descend(matrix_.data.data(), size_, goal_.data(), gain_.data());
    changed = 0;
    for (int i = 0; i < size_; ++i) {
      const char positive = goal_[i] > 0.0;
      changed += positive != free_[i];
      free_[i] = positive;
    }
  }
}

// Ends in a few steps whatever the size, or goes in circles and gives up. Returns
// whether the minimum over the free entries, in `goal_`, is the solution.
bool RegularQp::Exchange() {
  constexpr int kPatience = 3;
  int fewest = size_ + 1;
  bool by_inverse = true, whole = false;
  for (int patience = kPatience; patience > 0;) {
    order_.clear();
    held_.clear();
    for (int i = 0; i < size_; ++i) (free_[i] ? order_ : held_).push_back(i);
    const bool from_inverse = by_inverse && 2 * held_.size() < order_.size();
    if (from_inverse) {
      if (inverse_.size == 0) Invert();
      if (!whole) Combine(inverse_, all_, linear_.data(), whole_.data());
      whole = true;
      GoalFromInverse();
    } else {
      Goal();
      Slopes(goal_.data());
    }
    int wrong = 0;
    for (int i = 0; i < size_; ++i) {
      const bool changes = free_[i] ? !(goal_[i] > 0.0) : gain_[i] > noise_[i];
      if (!changes) continue;
      free_[i] = !free_[i];
      ++wrong;
    }
    if (wrong == 0) {
      if (!from_inverse || Refine()) return true;
      by_inverse = false;
      continue;
    }
    patience = wrong < fewest ? kPatience : patience - 1;
    fewest = std::min(fewest, wrong);
  }
  return false;
}

bool RegularQp::Solve(const double* linear, double* x) {
  double unit = 0.0;
  for (int i = 0; i < size_; ++i) unit = std::max(unit, std::abs(linear[i]));
  if (unit == 0.0) unit = 1.0;
  for (int i = 0; i < size_; ++i) linear_[i] = linear[i] / unit;
  Guess();
  if (!Exchange()) return false;
  for (int i = 0; i < size_; ++i) x[i] = goal_[i] * unit;
  return true;
}

}  // namespace mtl_keras

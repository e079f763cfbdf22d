#include "solvers/projection.h"

#include <algorithm>
#include <cmath>

#include "solvers/problem.h"

namespace mtl_keras {
namespace {

// Keeps the angle that GradVac aims at away from zero, where no finite multiple of
// the other gradient reaches it.
constexpr double kLargestGoal = 1.0 - 1e-6;

// One task's gradient: its coefficients on the unit gradients, and its products with
// them.
struct Row {
  Vector coefficients, products;

  explicit Row(int size) : coefficients(size), products(size) {}

  void Start(const Problem& problem, int task) {
    std::fill(coefficients.begin(), coefficients.end(), 0.0);
    const double norm = problem.norms[task] * problem.active[task];
    coefficients[task] = norm;
    const double* cosines = problem.cosines[task];
    for (int j = 0; j < problem.size; ++j) products[j] = norm * cosines[j];
  }

  void Add(const Problem& problem, int other, double amount) {
    coefficients[other] += amount;
    const double* cosines = problem.cosines[other];
    for (int j = 0; j < problem.size; ++j) products[j] += amount * cosines[j];
  }
};

}  // namespace

bool PcGrad(const double* gramian, int size, const int32_t* orders, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, problem.count, weights);
  std::fill_n(weights, size, 0.0);
  Row row(size);
  for (int task = 0; task < size; ++task) {
    row.Start(problem, task);
    for (int k = 0; k < size - 1; ++k) {
      const int other = orders[task * (size - 1) + k];
      const double product = row.products[other];
      if (product < 0.0) row.Add(problem, other, -product);
    }
    for (int j = 0; j < size; ++j) weights[j] += row.coefficients[j];
  }
  for (int j = 0; j < size; ++j) weights[j] /= problem.norms[j];
  return Finish(problem, true, problem.count, weights);
}

bool GradVac(const double* gramian, int size, const int32_t* orders, double beta,
             double precision, double* goals, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, problem.count, weights);
  std::fill_n(weights, size, 0.0);
  Matrix moved(size);
  std::copy_n(goals, size * size, moved.data.begin());
  const double noise = std::max(Noise(precision), std::sqrt(4.0 * size * kEps));
  Row row(size);
  for (int task = 0; task < size; ++task) {
    row.Start(problem, task);
    for (int k = 0; k < size - 1; ++k) {
      const int other = orders[task * (size - 1) + k];
      if (problem.active[task] * problem.active[other] == 0.0) continue;
      const double square =
          Dot(row.coefficients.data(), row.products.data(), size);
      double parts = 0.0;
      for (double coefficient : row.coefficients) parts += std::abs(coefficient);
      const double length = square <= noise * noise * parts * parts ? 0.0 : std::sqrt(square);
      double cosine = length == 0.0 ? 0.0 : row.products[other] / length;
      cosine = std::clamp(cosine, -1.0, 1.0);
      double& average = moved[task][other];
      const double goal = std::clamp(average, -kLargestGoal, kLargestGoal);
      if (cosine < goal) {
        const double slope = goal / std::sqrt(1.0 - goal * goal);
        row.Add(problem, other,
                length * (slope * std::sqrt(1.0 - cosine * cosine) - cosine));
      }
      average += beta * (cosine - average);
    }
    for (int j = 0; j < size; ++j) weights[j] += row.coefficients[j];
  }
  for (int j = 0; j < size; ++j) weights[j] /= problem.norms[j];
  const bool converged = Finish(problem, true, problem.count, weights);
  if (converged) std::copy(moved.data.begin(), moved.data.end(), goals);
  return converged;
}

}  // namespace mtl_keras

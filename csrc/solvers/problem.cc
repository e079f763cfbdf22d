#include "solvers/problem.h"

#include <algorithm>

namespace mtl_keras {

Matrix Problem::Gramian() const {
  Matrix out(size);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) {
      out[i][j] = (norms[i] * active[i]) * cosines[i][j] * (norms[j] * active[j]);
    }
  }
  return out;
}

Problem Prepare(const double* gramian, int size) {
  Problem p;
  p.size = size;
  bool finite = true;
  for (int i = 0; i < size * size; ++i) finite &= std::isfinite(gramian[i]) != 0;
  bool negative = false;
  double total = 0.0;
  p.active.resize(size);
  for (int i = 0; i < size; ++i) {
    const double square = gramian[i * size + i];
    p.active[i] = square == 0.0 ? 0.0 : 1.0;
    total += p.active[i];
    negative |= !(square >= 0.0);
  }
  p.count = std::max(total, 1.0);
  p.mean.resize(size);
  for (int i = 0; i < size; ++i) p.mean[i] = p.active[i] / p.count;
  p.valid = finite && !negative && total > 0.0;
  if (!p.valid) return p;

  p.norms.resize(size);
  double largest = 0.0;
  for (int i = 0; i < size; ++i) {
    p.norms[i] = p.active[i] > 0.0 ? std::sqrt(gramian[i * size + i]) : 1.0;
    largest = std::max(largest, p.norms[i] * p.active[i]);
  }
  p.scale = largest;
  p.cosines = Matrix(size);
  for (int i = 0; i < size; ++i) {
    p.cosines[i][i] = 1.0;
    for (int j = 0; j < i; ++j) {
      if (p.active[i] * p.active[j] == 0.0) continue;
      // One division after the other: the product of two small norms may underflow.
      const double upper = gramian[j * size + i] / p.norms[j] / p.norms[i];
      const double lower = gramian[i * size + j] / p.norms[i] / p.norms[j];
      // Each is clamped, as infinities of both signs have no mean.
      const double cosine =
          0.5 * (std::clamp(lower, -1.0, 1.0) + std::clamp(upper, -1.0, 1.0));
      p.cosines[i][j] = cosine;
      p.cosines[j][i] = cosine;
    }
  }
  for (int i = 0; i < size; ++i) {
    if (p.active[i] > 0.0) p.norms[i] /= largest;
  }
  return p;
}

bool Finish(const Problem& problem, bool converged, double factor, double* weights) {
  converged = converged && problem.valid;
  for (int i = 0; converged && i < problem.size; ++i) {
    weights[i] *= problem.active[i];
    converged = std::isfinite(weights[i]);
  }
  if (!converged) {
    for (int i = 0; i < problem.size; ++i) weights[i] = problem.mean[i] * factor;
  }
  return converged;
}

}  // namespace mtl_keras

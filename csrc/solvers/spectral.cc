#include "solvers/spectral.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "solvers/eigenvalue.h"
#include "solvers/problem.h"

namespace mtl_keras {
namespace {

// Sums that cancel to less than this share of their terms are taken for zero.
constexpr double kCancelled = 1e-6;

// Of the eigenvalues, ascending, those from here on are more than rounding errors.
int FirstKept(const Vector& values, double least = 0.0) {
  const int n = static_cast<int>(values.size());
  const double cut = std::max(values[n - 1] * n * kEps, least);
  int first = 0;
  while (first < n && !(values[first] > cut)) ++first;
  return first;
}

// The eigenvalues of the cosines that noise has not made.
int FirstAboveNoise(const Spectrum& spectrum, double precision) {
  const double noise = Noise(precision);
  return FirstKept(spectrum.values, noise * noise);
}

// Sum over k >= first of factor(values[k]) <v_k, x> v_k.
template <typename Factor>
void Apply(const Spectrum& spectrum, int first, const Factor& factor, const double* x,
           double* out) {
  const int n = spectrum.vectors.size;
  std::fill_n(out, n, 0.0);
  for (int k = first; k < n; ++k) {
    const double* v = spectrum.vectors[k];
    const double along = factor(spectrum.values[k]) * Dot(v, x, n);
    for (int i = 0; i < n; ++i) out[i] += along * v[i];
  }
}

// Coefficients on unit gradients, by the pseudo-inverse of their cosines.
Vector EqualCosines(const Problem& problem, double precision) {
  const Spectrum spectrum = Decompose(problem.cosines);
  Vector units(problem.size);
  Apply(spectrum, FirstAboveNoise(spectrum, precision),
        [](double value) { return 1.0 / value; }, problem.active.data(), units.data());
  return units;
}

// The Gram matrix over scale^2 without the noise of the unit gradients. Sets its rank.
Matrix WithoutNoise(Problem problem, double precision, int* rank) {
  const int n = problem.size;
  const Spectrum spectrum = Decompose(problem.cosines);
  const int first = FirstAboveNoise(spectrum, precision);
  // Tasks that take no part have eigenvalues of their own.
  *rank = n - first - (n - static_cast<int>(std::lround(problem.count)));
  Matrix kept(n);
  for (int k = first; k < n; ++k) {
    const double* v = spectrum.vectors[k];
    for (int i = 0; i < n; ++i) {
      const double factor = spectrum.values[k] * v[i];
      for (int j = 0; j < n; ++j) kept[i][j] += factor * v[j];
    }
  }
  // With nothing cut the cosines are more exact than their eigenvalues.
  if (first > 0) problem.cosines = kept;
  return problem.Gramian();
}

double ScaleOf(const Vector& values, int first, ScaleMode mode) {
  const int rank = static_cast<int>(values.size()) - first;
  if (mode == kLeast) return values[first];
  if (mode == kMedian) return values[first + (rank - 1) / 2];
  double sum = 0.0;
  for (int k = first; k < first + rank; ++k) sum += values[k];
  return sum / rank;
}

}  // namespace

bool ImtlG(const double* gramian, int size, double precision, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  const Vector units = EqualCosines(problem, precision);
  double total = 0.0, parts = 0.0;
  for (int i = 0; i < size; ++i) {
    weights[i] = units[i] / problem.norms[i];
    total += weights[i];
    parts += std::abs(weights[i]);
  }
  const bool converged =
      std::abs(total) > std::max(kCancelled, Noise(precision)) * parts;
  for (int i = 0; i < size; ++i) weights[i] /= total;
  return Finish(problem, converged, 1.0, weights);
}

bool Config(const double* gramian, int size, double precision, double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, problem.count, weights);
  const Vector units = EqualCosines(problem, precision);
  Vector products(size);
  Multiply(problem.cosines, units.data(), products.data());
  for (int i = 0; i < size; ++i) products[i] *= problem.active[i];
  const double square = Dot(units.data(), products.data(), size);
  const double length = Dot(problem.norms.data(), products.data(), size);
  const double share = std::max(kCancelled, Noise(precision));
  double parts = 0.0, lengths = 0.0;
  for (int i = 0; i < size; ++i) {
    parts += units[i] * units[i];
    lengths += problem.norms[i] * std::abs(products[i]);
  }
  // At a Pareto-stationary point the sign of the length is one of rounding.
  const bool converged = square > share * share * parts && length > share * lengths;
  for (int i = 0; i < size; ++i) {
    weights[i] = units[i] / problem.norms[i] * length / square;
  }
  return Finish(problem, converged, problem.count, weights);
}

bool Aligned(const double* gramian, int size, ScaleMode mode, double precision,
             double* weights) {
  const Problem problem = Prepare(gramian, size);
  if (!problem.valid) return Finish(problem, false, 1.0, weights);
  int rank = 0;
  const Spectrum spectrum = Decompose(WithoutNoise(problem, precision, &rank));
  const int first = std::max(FirstKept(spectrum.values), size - rank);
  if (first >= size) return Finish(problem, false, 1.0, weights);
  const double* mean = problem.mean.data();
  const double root = std::sqrt(ScaleOf(spectrum.values, first, mode));
  Apply(spectrum, first, [root](double value) { return root / std::sqrt(value); }, mean,
        weights);
  // The update is sqrt(scale) times this long: zero where all gradients cancel.
  double square = 0.0;
  for (int k = first; k < size; ++k) {
    const double along = Dot(spectrum.vectors[k], mean, size);
    square += along * along;
  }
  const double share = std::max(kCancelled, Noise(precision));
  const bool converged = square > share * share * Dot(mean, mean, size);
  return Finish(problem, converged, 1.0, weights);
}

}  // namespace mtl_keras

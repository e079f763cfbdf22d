#include "solvers/eigenvalue.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace mtl_keras {
namespace {

constexpr int kSweeps = 30;

void Rotate(double c, double s, double* x, double* y, int n) {
  for (int k = 0; k < n; ++k) {
    const double xk = x[k], yk = y[k];
    x[k] = c * xk - s * yk;
    y[k] = s * xk + c * yk;
  }
}

}  // namespace

Spectrum Decompose(Matrix a) {
  const int n = a.size;
  Matrix vectors(n);
  for (int i = 0; i < n; ++i) vectors[i][i] = 1.0;
  bool rotated = true;
  for (int sweep = 0; sweep < kSweeps && rotated; ++sweep) {
    rotated = false;
    for (int p = 0; p < n; ++p) {
      for (int q = p + 1; q < n; ++q) {
        const double app = a[p][p], aqq = a[q][q], apq = a[p][q];
        // Relative to its own rows, so that small ones are made as exact as large.
        if (std::abs(apq) <= kEps * std::sqrt(std::abs(app)) * std::sqrt(std::abs(aqq))) {
          continue;
        }
        rotated = true;
        const double theta = (aqq - app) / (2.0 * apq);
        const double t =
            std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1.0 / std::hypot(t, 1.0);
        const double s = t * c;
        // Symmetric: the columns are the rows.
        Rotate(c, s, a[p], a[q], n);
        for (int k = 0; k < n; ++k) {
          a[k][p] = a[p][k];
          a[k][q] = a[q][k];
        }
        a[p][p] = app - t * apq;
        a[q][q] = aqq + t * apq;
        a[p][q] = a[q][p] = 0.0;
        Rotate(c, s, vectors[p], vectors[q], n);
      }
    }
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  // Entries near the largest double may have left what is not a number.
  const auto key = [&a](int i) { return std::isnan(a[i][i]) ? HUGE_VAL : a[i][i]; };
  std::sort(order.begin(), order.end(), [&](int i, int j) { return key(i) < key(j); });
  Spectrum spectrum{Vector(n), Matrix(n)};
  for (int i = 0; i < n; ++i) {
    spectrum.values[i] = a[order[i]][order[i]];
    std::copy_n(vectors[order[i]], n, spectrum.vectors[i]);
  }
  return spectrum;
}

}  // namespace mtl_keras

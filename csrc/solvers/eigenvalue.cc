#include "solvers/eigenvalue.h"

#include <algorithm>
#include <cmath>

namespace mtl_keras {

double SmallestEigenvalue(Matrix a) {
  constexpr int kSweeps = 30;
  const int n = a.size;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double off = 0.0, all = 0.0;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        all += a[i][j] * a[i][j];
        if (i != j) off += a[i][j] * a[i][j];
      }
    }
    if (!(off > kEps * kEps * all)) break;
    for (int p = 0; p < n; ++p) {
      for (int q = p + 1; q < n; ++q) {
        if (a[p][q] == 0.0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
        const double t =
            std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1.0 / std::hypot(t, 1.0);
        const double s = t * c;
        for (int k = 0; k < n; ++k) {
          const double kp = a[k][p], kq = a[k][q];
          a[k][p] = c * kp - s * kq;
          a[k][q] = s * kp + c * kq;
        }
        for (int k = 0; k < n; ++k) {
          const double pk = a[p][k], qk = a[q][k];
          a[p][k] = c * pk - s * qk;
          a[q][k] = s * pk + c * qk;
        }
      }
    }
  }
  double smallest = a[0][0];
  for (int i = 1; i < n; ++i) smallest = std::min(smallest, a[i][i]);
  return smallest;
}

}  // namespace mtl_keras

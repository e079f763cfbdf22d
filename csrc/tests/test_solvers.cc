// Solvers against the conditions that define their solutions, and on input that has
// none. That they agree with the TensorFlow versions is tested from Python.

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "solvers/calls.h"
#include "solvers/conic.h"
#include "solvers/device.h"
#include "solvers/eigenvalue.h"
#include "solvers/projection.h"
#include "solvers/quadratic.h"
#include "solvers/regular_qp.h"
#include "solvers/root.h"
#include "solvers/spectral.h"
#include "tests/check.h"

namespace mtl_keras {
namespace {

Matrix GramianOf(const std::vector<Vector>& rows) {
  Matrix out(static_cast<int>(rows.size()));
  for (int i = 0; i < out.size; ++i) {
    for (int j = 0; j < out.size; ++j) {
      out[i][j] = Dot(rows[i].data(), rows[j].data(), static_cast<int>(rows[i].size()));
    }
  }
  return out;
}

std::vector<Vector> Rows(std::mt19937* random, int tasks, int width, bool conflict) {
  std::normal_distribution<double> normal;
  std::vector<Vector> rows(tasks, Vector(width));
  for (Vector& row : rows) {
    for (double& x : row) x = normal(*random);
  }
  for (int k = 0; conflict && k < width; ++k) {
    double mean = 0.0;
    for (const Vector& row : rows) mean += row[k] / tasks;
    for (Vector& row : rows) row[k] -= 0.95 * mean;
  }
  return rows;
}

std::vector<int32_t> Orders(std::mt19937* random, int tasks) {
  std::vector<int32_t> orders;
  for (int i = 0; i < tasks; ++i) {
    std::vector<int32_t> others;
    for (int j = 0; j < tasks; ++j) {
      if (j != i) others.push_back(j);
    }
    std::shuffle(others.begin(), others.end(), *random);
    orders.insert(orders.end(), others.begin(), others.end());
  }
  return orders;
}

void TestOptimalityConditions() {
  std::mt19937 random(1);
  for (int tasks : {1, 2, 3, 5, 8, 16, 64}) {
    for (int trial = 0; trial < 20; ++trial) {
      const Matrix gram = GramianOf(Rows(&random, tasks, 2 * tasks + 5, trial % 2));
      const double* g = gram.data.data();
      Vector w(tasks), products(tasks);

      CHECK(MinNorm(g, tasks, w.data()));
      Multiply(gram, w.data(), products.data());
      const double least = Dot(w.data(), products.data(), tasks);
      double total = 0.0;
      for (int i = 0; i < tasks; ++i) {
        total += w[i];
        CHECK(w[i] >= 0.0);
        CHECK(products[i] >= least - 1e-9);
      }
      CHECK_CLOSE(total, 1.0, 1e-12);

      CHECK(UpGrad(g, tasks, nullptr, 0.0, kEps, w.data()));
      Multiply(gram, w.data(), products.data());
      for (double p : products) CHECK(p >= -1e-9 * gram[0][0]);

      Vector shares(tasks);
      for (int i = 0; i < tasks; ++i) shares[i] = 0.25 * (1 + i % 9);
      for (double alpha : {1.0, 2.0, 0.7}) {
        for (const bool given : {false, true}) {
          const double* s = given ? shares.data() : nullptr;
          CHECK(PowerRoot(g, tasks, alpha, s, kEps, w.data()));
          Multiply(gram, w.data(), products.data());
          for (int i = 0; i < tasks; ++i) {
            const double share = given ? shares[i] : 1.0;
            CHECK_CLOSE(products[i] * std::pow(w[i], 1.0 / alpha) / share, 1.0, 1e-8);
          }
        }
      }

      CHECK(CaGrad(g, tasks, 0.5, kEps, w.data()));
      Vector mean(tasks, 1.0 / tasks), correction(tasks);
      Multiply(gram, mean.data(), products.data());
      const double square = Dot(mean.data(), products.data(), tasks);
      for (int i = 0; i < tasks; ++i) correction[i] = w[i] - mean[i];
      Multiply(gram, correction.data(), products.data());
      CHECK_CLOSE(Dot(correction.data(), products.data(), tasks) / square, 0.25, 1e-8);
    }
  }
}

void TestDegenerateInputStaysFinite() {
  std::mt19937 random(2);
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double specials[] = {0.0,    -0.0,    1e-320, -1e-320, 1e-200, 1e200, 1e308,
                             -1e308, infinity, -infinity, nan,  1.0,   -1.0};
  for (int trial = 0; trial < 3000; ++trial) {
    const int tasks = 1 + static_cast<int>(random() % 6);
    Matrix gram = GramianOf(Rows(&random, tasks, 1 + random() % 4, random() % 2));
    // Entries that no Gram matrix has.
    for (int k = random() % 4; k > 0; --k) {
      gram[random() % tasks][random() % tasks] = specials[random() % 13];
    }
    const double* g = gram.data.data();
    const auto orders = Orders(&random, tasks);
    const double precision = trial % 3 ? kEps : std::pow(2.0, -7.0 - random() % 40);
    Vector w(tasks), goals(tasks * tasks, 0.9), batch(2 * tasks, 0.5),
        out(2 * tasks), shares(tasks);
    auto check = [&] {
      for (double x : w) CHECK(std::isfinite(x));
    };
    MinNorm(g, tasks, w.data()), check();
    UpGrad(g, tasks, nullptr, trial % 2 ? 1e-4 : 0.0, precision, w.data()), check();
    DualProj(g, tasks, nullptr, trial % 2 ? 1e-4 : 0.0, precision, w.data()),
        check();
    CaGrad(g, tasks, 0.4, precision, w.data()), check();
    PowerRoot(g, tasks, 1.0, nullptr, precision, w.data()), check();
    PowerRoot(g, tasks, 2.0, nullptr, precision, w.data()), check();
    PowerRoot(g, tasks, 0.001, nullptr, precision, w.data()), check();
    for (int i = 0; i < tasks; ++i) shares[i] = std::abs(specials[random() % 13]);
    PowerRoot(g, tasks, 2.0, shares.data(), precision, w.data()), check();
    PcGrad(g, tasks, orders.data(), w.data()), check();
    GradVac(g, tasks, orders.data(), 0.1, precision, goals.data(), w.data()), check();
    ImtlG(g, tasks, precision, w.data()), check();
    Config(g, tasks, precision, w.data()), check();
    Aligned(g, tasks, static_cast<ScaleMode>(trial % 3), precision, w.data()), check();
    DualCone(g, tasks, batch.data(), 2, precision, out.data());
    for (double x : out) CHECK(std::isfinite(x));
    for (double x : goals) CHECK(std::isfinite(x));
  }
}

// However wrong the guess, also where it makes the pivots go in circles.
void TestQuadraticProgramFromAnyGuess() {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  for (int size : {1, 4, 12, 40}) {
    for (int trial = 0; trial < 30; ++trial) {
      // Every third matrix has half the rank.
      const int width = trial % 3 == 0 ? size / 2 + 1 : 2 * size + 3;
      Matrix matrix = GramianOf(Rows(&random, size, width, trial % 2));
      for (double& value : matrix.data) value /= width;
      for (int i = 0; i < size; ++i) matrix[i][i] += 1e-4;
      NonnegativeQp program(matrix);
      Vector linear(size), expected(size), x(size);
      std::vector<char> free(size);
      for (double& value : linear) value = normal(random);
      CHECK(program.Solve(linear.data(), false, expected.data(), free.data()));
      for (int guess : {0, 1, 2}) {
        for (int i = 0; i < size; ++i) {
          free[i] = guess == 2 ? normal(random) > 0.0 : guess != 0;
        }
        CHECK(program.SolveNear(linear.data(), x.data(), free.data()));
        for (int i = 0; i < size; ++i) {
          CHECK_CLOSE(x[i], expected[i], 1e-7 * (1.0 + std::abs(expected[i])));
        }
      }
    }
  }
}

// From the inverse where most entries are free, and by a factor where few are.
void TestRegularQuadraticPrograms() {
  int refused = 0;  // pivots that went in circles
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (int size : {1, 4, 12, 40}) {
    for (int trial = 0; trial < 30; ++trial) {
      const int width = trial % 3 == 0 ? size / 2 + 1 : 2 * size + 3;
      Matrix matrix = GramianOf(Rows(&random, size, width, trial % 2));
      for (double& value : matrix.data) value /= width;
      for (int i = 0; i < size; ++i) matrix[i][i] += 1e-4;
      NonnegativeQp program(matrix);
      RegularQp regular(matrix, 0.0);
      CHECK(regular.regular());
      Vector linear(size), expected(size), x(size);
      std::vector<char> free(size);
      for (double mean : {-1.0, 0.0, 1.0, 5.0}) {
        for (double& value : linear) value = mean + normal(random);
        CHECK(program.Solve(linear.data(), false, expected.data(), free.data()));
        if (!regular.Solve(linear.data(), x.data())) {
          ++refused;
          continue;
        }
        for (int i = 0; i < size; ++i) {
          CHECK_CLOSE(x[i], expected[i], 1e-7 * (1.0 + std::abs(expected[i])));
        }
      }
    }
  }
  CHECK(refused < 20);
  for (double value : {0.0, -1.0, std::nan("")}) {
    Matrix singular(2);
    singular[0][0] = singular[1][1] = 1.0;
    singular[0][1] = singular[1][0] = 1.0 - value;
    CHECK(!RegularQp(singular, 0.0).regular());
  }
}

// v >= u, G v >= 0, and of each task one is an equality: what defines a projection.
void TestProjectionsAreComplementary() {
  std::mt19937 random(4);
  std::normal_distribution<double> normal;
  for (int tasks : {2, 3, 9, 32, 128}) {
    for (int kind = 0; kind < 5; ++kind) {
      auto rows = Rows(&random, tasks, 3 * tasks, kind == 0);
      for (int i = 0; i < tasks; ++i) {
        // Agreeing, of norms over four decades, nearly dependent.
        const double length = kind == 2 ? std::pow(10.0, 4.0 * i / tasks) : 1.0;
        for (double& x : rows[i]) x *= length;
        if (kind == 3) rows[i][0] += 10.0;
        if (kind == 4 && i > 0) {
          const Vector& other = rows[i - 1];
          for (int k = 0; k < 3 * tasks; ++k) rows[i][k] = 1e-3 * rows[i][k] - other[k];
        }
      }
      const Matrix gram = GramianOf(rows);
      Matrix lower(tasks), raised(tasks);
      for (int i = 0; i < tasks; ++i) lower[i][i] = 1.0 + std::abs(normal(random));
      CHECK(DualCone(gram.data.data(), tasks, lower.data.data(), tasks, kEps,
                     raised.data.data()));
      Vector products(tasks);
      for (int row = 0; row < tasks; ++row) {
        Multiply(gram, raised[row], products.data());
        double size = 0.0;
        for (int i = 0; i < tasks; ++i) {
          size += std::abs(raised[row][i]) * std::sqrt(gram[i][i]);
        }
        for (int i = 0; i < tasks; ++i) {
          const double product = products[i] / std::sqrt(gram[i][i]) / size;
          CHECK(raised[row][i] >= lower[row][i]);
          CHECK(product >= -1e-10);
          CHECK(raised[row][i] == lower[row][i] || product <= 1e-10);
        }
      }
    }
  }
}

void TestEigenvalues() {
  Matrix matrix(3);
  const double values[] = {2, -1, 0, -1, 2, -1, 0, -1, 2};
  std::copy(values, values + 9, matrix.data.begin());
  const Spectrum spectrum = Decompose(matrix);
  for (int k = 0; k < 3; ++k) {
    CHECK_CLOSE(spectrum.values[k], 2.0 + (k - 1) * std::sqrt(2.0), 1e-14);
  }
  // Rows that differ by ten decades: small eigenvalues are as exact as large ones.
  std::mt19937 random(4);
  for (int size : {1, 2, 7, 30}) {
    Matrix graded = GramianOf(Rows(&random, size, 2 * size + 3, false));
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) {
        graded[i][j] *= std::pow(10.0, -10.0 * (i + j) / size);
      }
    }
    const Spectrum spread = Decompose(graded);
    Vector product(size);
    for (int k = 0; k < size; ++k) {
      const double* v = spread.vectors[k];
      Multiply(graded, v, product.data());
      for (int i = 0; i < size; ++i) {
        const double scale = std::pow(10.0, -10.0 * i / size) * std::sqrt(graded[0][0]);
        CHECK_CLOSE(product[i], spread.values[k] * v[i],
                    1e-12 * scale * (std::sqrt(std::abs(spread.values[k])) + scale));
      }
      for (int l = 0; l <= k; ++l) {
        CHECK_CLOSE(Dot(v, spread.vectors[l], size), k == l ? 1.0 : 0.0, 1e-13);
      }
    }
  }
}

void TestSpectralMethods() {
  std::mt19937 random(5);
  for (int tasks : {1, 2, 5, 16}) {
    const Matrix gram = GramianOf(Rows(&random, tasks, 2 * tasks + 5, true));
    const double* g = gram.data.data();
    Vector w(tasks), products(tasks);
    CHECK(ImtlG(g, tasks, kEps, w.data()));
    Multiply(gram, w.data(), products.data());
    for (int i = 0; i < tasks; ++i) {
      CHECK_CLOSE(products[i] / std::sqrt(gram[i][i]),
                  products[0] / std::sqrt(gram[0][0]), 1e-9);
    }
    CHECK(Config(g, tasks, kEps, w.data()));
    Multiply(gram, w.data(), products.data());
    const double length = std::sqrt(Dot(w.data(), products.data(), tasks));
    double sum = 0.0;
    for (int i = 0; i < tasks; ++i) {
      CHECK_CLOSE(products[i] / std::sqrt(gram[i][i]),
                  products[0] / std::sqrt(gram[0][0]), 1e-9);
      sum += products[i] / length;
    }
    CHECK_CLOSE(length, sum, 1e-9 * sum);
    // For w = sqrt(s) G^(-1/2) b: w' G w = s b' b.
    const Spectrum spectrum = Decompose(gram);
    const double scales[] = {spectrum.values[0], spectrum.values[(tasks - 1) / 2],
                             Dot(spectrum.values.data(), Vector(tasks, 1.0).data(), tasks) /
                                 tasks};
    for (int mode = 0; mode < kNumScaleModes; ++mode) {
      CHECK(Aligned(g, tasks, static_cast<ScaleMode>(mode), kEps, w.data()));
      Multiply(gram, w.data(), products.data());
      const double expected = scales[mode] / tasks;
      CHECK_CLOSE(Dot(w.data(), products.data(), tasks), expected, 1e-9 * expected);
    }
  }
}

// Copies without a device; fails from call number `failing` on.
class HostStream : public Stream {
 public:
  explicit HostStream(int failing = -1) : left_(failing) {}
  std::string ToHost(void* host, const void* device, std::size_t bytes) override {
    return Copy(host, device, bytes);
  }
  std::string ToDevice(void* device, const void* host, std::size_t bytes) override {
    return Copy(device, host, bytes);
  }
  std::string Wait() override { return left_-- == 0 ? "lost" : ""; }

 private:
  std::string Copy(void* to, const void* from, std::size_t bytes) {
    std::memcpy(to, from, bytes);
    return left_-- == 0 ? "lost" : "";
  }
  int left_;
};

void TestSolversOnADevice() {
  std::mt19937 random(6);
  const int tasks = 4;
  const Matrix gram = GramianOf(Rows(&random, tasks, 9, true));
  const Array gramian{gram.data.data(), {tasks, tasks}};
  const auto orders = Orders(&random, tasks);
  const double c = 0.4, precision = kEps, none = 0.0;
  Vector expected(tasks), w(tasks);
  bool converged = false;

  const Solver& cagrad = *FindSolver("CaGrad");
  const std::vector<Array> inputs = {gramian, {&c, {}}, {&precision, {}}};
  CHECK(CaGrad(gram.data.data(), tasks, c, precision, expected.data()));
  HostStream stream;
  CHECK(RunOnDevice(cagrad, inputs, {w.data(), &converged}, &stream).empty());
  CHECK(converged);
  CHECK(w == expected);
  // Three copies, a wait, two copies and a wait.
  for (int failing = 0; failing < 7; ++failing) {
    HostStream broken(failing);
    CHECK(RunOnDevice(cagrad, inputs, {w.data(), &converged}, &broken) == "lost");
  }
  const std::vector<Array> wrong = {gramian, {&c, {}}, {&none, {}}};
  CHECK(RunOnDevice(cagrad, wrong, {w.data(), &converged}, &stream) ==
        "Expected a precision in (0, 1). Received: 0.");

  // Integers, several outputs, and an input without entries.
  Vector goals(tasks * tasks, 0.2), moved(tasks * tasks);
  const Solver& gradvac = *FindSolver("GradVac");
  CHECK(RunOnDevice(gradvac,
                    {gramian,
                     {goals.data(), {tasks, tasks}},
                     {orders.data(), {tasks, tasks - 1}},
                     {&c, {}},
                     {&precision, {}}},
                    {w.data(), moved.data(), &converged}, &stream)
            .empty());
  CHECK(GradVac(gram.data.data(), tasks, orders.data(), c, precision, goals.data(),
                expected.data()));
  CHECK(w == expected && moved == goals);
  const Solver& upgrad = *FindSolver("UpGrad");
  CHECK(RunOnDevice(upgrad, {gramian, {nullptr, {0}}, {&none, {}}, {&precision, {}}},
                    {w.data(), &converged}, &stream)
            .empty());
  CHECK(UpGrad(gram.data.data(), tasks, nullptr, 0.0, precision, expected.data()));
  CHECK(w == expected);
}

}  // namespace
}  // namespace mtl_keras

int main() {
  mtl_keras::TestOptimalityConditions();
  mtl_keras::TestDegenerateInputStaysFinite();
  mtl_keras::TestQuadraticProgramFromAnyGuess();
  mtl_keras::TestRegularQuadraticPrograms();
  mtl_keras::TestProjectionsAreComplementary();
  mtl_keras::TestEigenvalues();
  mtl_keras::TestSpectralMethods();
  mtl_keras::TestSolversOnADevice();
  std::printf("solvers: all as expected\n");
}

// Gram matrices and combinations, on every instruction set, and mixtures of experts
// against plain loops.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "kernels/gram.h"
#include "kernels/mixture.h"
#include "kernels/sparse.h"
#include "tests/check.h"

namespace mtl_keras {
namespace {

// Cuts the work differently for every number of threads, and runs it out of order.
ParallelFor Threads(int count) {
  return [count](int64_t total, int64_t,
                 const std::function<void(int64_t, int64_t)>& work) {
    std::vector<std::thread> threads;
    for (int t = count - 1; t >= 0; --t) {
      const int64_t begin = total * t / count, end = total * (t + 1) / count;
      if (begin < end) threads.emplace_back([=, &work] { work(begin, end); });
    }
    for (auto& thread : threads) thread.join();
  };
}

std::vector<const Simd*> Variants() {
  const Simd* all[3];
  const int count = AvailableSimd(all, 3);
  return std::vector<const Simd*>(all, all + count);
}

std::vector<float> Random(std::mt19937* random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(*random);
  return out;
}

// Factors of positive definite matrices, whole and column after column, and one sweep
// of descent, against plain loops.
void TestFactorsAndDescent() {
  std::mt19937 random(5);
  for (int n : {1, 2, 3, 4, 5, 8, 13, 31, 64}) {
    const auto rows = Random(&random, 2 * n * n);
    std::vector<double> matrix(n * n), x(n), product(n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        for (int k = 0; k < 2 * n; ++k) {
          matrix[i * n + j] += double{rows[i * 2 * n + k]} * rows[j * 2 * n + k] / n;
        }
      }
      matrix[i * n + i] += 0.1;
      x[i] = rows[i];
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) product[i] += matrix[i * n + j] * x[j];
    }
    for (const Simd* simd : Variants()) {
      for (int step : {n, 1, 3}) {
        const int64_t stride = n + kFactorPadding;
        std::vector<double> factor(n * stride);
        for (int from = 0; from < n; from += step) {
          const int to = std::min(from + step, n);
          for (int i = 0; i < to; ++i) {
            for (int j = std::max(i, from); j < to; ++j) {
              factor[i * stride + j] = matrix[i * n + j];
            }
          }
          simd->factorise(factor.data(), stride, from, to);
        }
        std::vector<double> solution = product;
        simd->substitute(factor.data(), stride, n, solution.data());
        for (int i = 0; i < n; ++i) CHECK_CLOSE(solution[i], x[i], 1e-11);
      }
      std::vector<double> moved(n, 0.0), slope = product, expected(n, 0.0);
      simd->descend(matrix.data(), n, moved.data(), slope.data());
      for (int i = 0; i < n; ++i) {
        double rest = product[i];
        for (int j = 0; j < i; ++j) rest -= matrix[i * n + j] * expected[j];
        expected[i] = std::max(rest / matrix[i * n + i], 0.0);
        CHECK_CLOSE(moved[i], expected[i], 1e-11);
      }
      for (int i = 0; i < n; ++i) {
        double rest = product[i];
        for (int j = 0; j < n; ++j) rest -= matrix[i * n + j] * expected[j];
        CHECK_CLOSE(slope[i], rest, 1e-11);
      }
    }
  }
}

void TestGramianAndCombination() {
  std::mt19937 random(1);
  // Sizes around the blocks and lanes; the last variable spans several pieces.
  const std::vector<int64_t> sizes = {1, 7, 8, 0, 255, 256, 257, 1025, 70001};
  for (int num_tasks : {1, 2, 3, 4, 5, 7, 8, 13}) {
    std::vector<std::vector<float>> storage;
    std::vector<Column> columns;
    for (std::size_t v = 0; v < sizes.size(); ++v) {
      Column column;
      column.size = sizes[v];
      for (int t = 0; t < num_tasks; ++t) {
        if ((t + v) % 5 == 4) continue;  // no gradient
        // Unaligned on purpose.
        storage.push_back(Random(&random, sizes[v] + 1));
        column.tasks.push_back(t);
        column.rows.push_back(storage.back().data() + 1);
        column.dtypes.push_back(DType::kFloat);
      }
      columns.push_back(column);
    }
    std::vector<double> expected(num_tasks * num_tasks);
    std::vector<double> weights(num_tasks);
    for (double& w : weights) w = Random(&random, 1)[0];
    for (const Column& column : columns) {
      for (std::size_t i = 0; i < column.rows.size(); ++i) {
        for (std::size_t j = 0; j < column.rows.size(); ++j) {
          const float* a = static_cast<const float*>(column.rows[i]);
          const float* b = static_cast<const float*>(column.rows[j]);
          double sum = 0.0;
          for (int64_t k = 0; k < column.size; ++k) sum += double(a[k]) * b[k];
          expected[column.tasks[i] * num_tasks + column.tasks[j]] += sum;
        }
      }
    }
    std::vector<double> first;
    for (const Simd* simd : Variants()) {
      for (int threads : {1, 2, 5}) {
        std::vector<double> gramian(num_tasks * num_tasks, 7.0);
        TaskGramian(columns, num_tasks, Threads(threads), gramian.data(), *simd);
        for (std::size_t i = 0; i < gramian.size(); ++i) {
          CHECK_CLOSE(gramian[i], expected[i], 1e-8);
        }
        if (first.empty()) first = gramian;
        CHECK(std::memcmp(first.data(), gramian.data(), 8 * first.size()) == 0);
      }
      std::vector<std::vector<float>> out;
      std::vector<void*> outs;
      for (int64_t size : sizes) out.emplace_back(size);
      for (auto& o : out) outs.push_back(o.data());
      CombineTaskGradients(columns, weights.data(), Threads(3), outs, *simd);
      for (std::size_t v = 0; v < columns.size(); ++v) {
        if (columns[v].rows.empty()) continue;
        for (int64_t k = 0; k < sizes[v]; ++k) {
          double sum = 0.0;
          for (std::size_t i = 0; i < columns[v].rows.size(); ++i) {
            sum += weights[columns[v].tasks[i]] *
                   static_cast<const float*>(columns[v].rows[i])[k];
          }
          CHECK_CLOSE(out[v][k], sum, 1e-5);
        }
      }
      // In place of each column's first gradient.
      std::vector<std::vector<float>> firsts;
      std::vector<Column> in_place = columns;
      for (std::size_t v = 0; v < columns.size(); ++v) {
        const bool any = !columns[v].rows.empty();
        const float* row = any ? static_cast<const float*>(columns[v].rows[0]) : nullptr;
        firsts.emplace_back(row, row + (any ? sizes[v] : 0));
        outs[v] = firsts.back().data();
        if (any) in_place[v].rows[0] = outs[v];
      }
      CombineTaskGradients(in_place, weights.data(), Threads(3), outs, *simd);
      for (std::size_t v = 0; v < columns.size(); ++v) {
        if (columns[v].rows.empty()) continue;
        CHECK(firsts[v] == out[v]);
      }
    }
  }
}

// The hot loops take doubles that are aligned for double only.
void TestUnaligned() {
  std::vector<double> storage(1 + 2 * 16, 2.0), sums(1 + 4 * 8);
  const int tasks[] = {0, 1};
  for (const Simd* simd : Variants()) {
    std::fill(sums.begin(), sums.end(), 0.0);
    simd->add_pairs(storage.data() + 1, tasks, 2, 16, 2, sums.data() + 1);
    for (int lane = 0; lane < 8; ++lane) CHECK(sums[1 + 2 * 8 + lane] == 8.0);
  }
}

// All values of the narrow types survive the way to double and back.
void TestNarrowTypes() {
  for (DType dtype : {DType::kHalf, DType::kBfloat16}) {
    std::vector<uint16_t> all(65536), back(65536);
    for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
    const uint32_t infinity = dtype == DType::kHalf ? 0x7c00 : 0x7f80;
    for (const Simd* simd : Variants()) {
      const Column column{65536, {0}, {all.data()}, {dtype}};
      const double one = 1.0;
      CombineTaskGradients({column}, &one, Serially, {back.data()}, *simd);
      std::vector<double> wide(65536);
      simd->widen(all.data(), dtype, 65536, true, wide.data());
      for (uint32_t i = 0; i < 65536; ++i) {
        const bool is_nan = (i & 0x7fff) > infinity;
        CHECK(is_nan ? wide[i] != wide[i] && (back[i] & 0x7fff) > infinity
                     : back[i] == i);
      }
      const bool half = dtype == DType::kHalf;
      CHECK(wide[half ? 0x3c00 : 0x3f80] == 1.0);
      CHECK(wide[half ? 0xc000 : 0xc000] == -2.0);
      CHECK(wide[1] == std::ldexp(1.0, half ? -24 : -133));
      CHECK(wide[infinity] == std::numeric_limits<double>::infinity());
    }
  }
  // Rounding to even, and beyond the largest number.
  const float inputs[] = {1.0f + 0x1p-11f, 1.0f + 0x3p-11f, 65519.0f, 65520.0f,
                          0x1p-25f, 0x1.8p-24f};
  const uint16_t outputs[] = {0x3c00, 0x3c02, 0x7bff, 0x7c00, 0x0000, 0x0002};
  const uint16_t ones[] = {0x3c00};
  for (const Simd* simd : Variants()) {
    for (int i = 0; i < 6; ++i) {
      const void* row = ones;
      const double weight = inputs[i];
      uint16_t out;
      simd->combine(&row, &weight, 1, DType::kHalf, 0, 1, &out);
      CHECK(out == outputs[i]);
    }
  }
}

// Groups of tasks, when there are more than are multiplied at once.
void TestGramianOfManyTasks() {
  std::mt19937 random(5);
  for (int num_tasks : {256, 257, 300, 520}) {
    const std::vector<int64_t> sizes = {3, 70000};
    std::vector<std::vector<float>> storage;
    for (int64_t size : sizes) storage.push_back(Random(&random, size + num_tasks));
    std::vector<Column> columns(sizes.size());
    for (std::size_t v = 0; v < sizes.size(); ++v) {
      columns[v].size = sizes[v];
      for (int t = 0; t < num_tasks; ++t) {
        // The long variable belongs to a few tasks of all groups, to save time.
        if (v == 1 && t % 37 != 0) continue;
        columns[v].tasks.push_back(t);
        columns[v].rows.push_back(storage[v].data() + t);
        columns[v].dtypes.push_back(DType::kFloat);
      }
    }
    std::vector<double> expected(num_tasks * num_tasks), first;
    for (const Column& column : columns) {
      for (std::size_t i = 0; i < column.rows.size(); ++i) {
        for (std::size_t j = 0; j < column.rows.size(); ++j) {
          const float* a = static_cast<const float*>(column.rows[i]);
          const float* b = static_cast<const float*>(column.rows[j]);
          for (int64_t k = 0; k < column.size; ++k) {
            expected[column.tasks[i] * num_tasks + column.tasks[j]] += double(a[k]) * b[k];
          }
        }
      }
    }
    for (const Simd* simd : Variants()) {
      for (int threads : {1, 3}) {
        std::vector<double> gramian(num_tasks * num_tasks, 7.0);
        TaskGramian(columns, num_tasks, Threads(threads), gramian.data(), *simd);
        for (std::size_t i = 0; i < gramian.size(); ++i) {
          CHECK_CLOSE(gramian[i], expected[i], 1e-7);
        }
        if (first.empty()) first = gramian;
        CHECK(std::memcmp(first.data(), gramian.data(), 8 * first.size()) == 0);
      }
    }
  }
}

// Memory that runs out in another thread is the caller's exception.
void TestWantOfMemoryReachesTheCaller() {
  for (int threads : {1, 3}) {
    const ParallelFor parallel_for = Rethrowing(Threads(threads));
    bool caught = false;
    try {
      parallel_for(9, 1, [](int64_t begin, int64_t) {
        if (begin == 0) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    CHECK(caught);
    std::atomic<int64_t> sum{0};
    parallel_for(9, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    CHECK(sum == 9);
  }
}

void TestSparse() {
  std::mt19937 random(2);
  const int num_tasks = 4;
  for (int64_t width : {1, 5, 8, 33}) {
    // Below zero: tasks that looked up the same ids, most of them once.
    for (int64_t wanted : {0, 1, 3, 5000, -5, -5000}) {
      const bool same = wanted < 0;
      const int64_t count = std::abs(wanted);
      std::vector<std::vector<float>> values;
      std::vector<std::vector<int64_t>> ids;
      std::vector<SparseGradient> gradients;
      for (int t = 0; t < num_tasks; ++t) {
        if (t == 2) continue;
        const int64_t n = t == 1 && !same ? count / 2 : count;
        values.push_back(Random(&random, n * width));
        ids.emplace_back(n);
        for (int64_t& id : ids.back()) {
          // Ids as large and as small as there are, with many repetitions.
          id = static_cast<int64_t>(random() % 1000) - 500;
          if (random() % 2) id *= int64_t{1} << 53;
          if (same) id = static_cast<int64_t>(random() % (20 * count));
        }
        if (same) ids.back() = ids.front();
      }
      for (std::size_t i = 0; i < values.size(); ++i) {
        gradients.push_back({static_cast<int>(i < 2 ? i : 3), values[i].data(),
                             DType::kFloat, ids[i].data(), true,
                             static_cast<int64_t>(ids[i].size())});
      }
      std::map<int64_t, std::vector<double>> sums[4];
      for (const SparseGradient& g : gradients) {
        for (int64_t r = 0; r < g.count; ++r) {
          auto& sum = sums[g.task][g.id(r)];
          sum.resize(width);
          for (int64_t k = 0; k < width; ++k) {
            sum[k] += static_cast<const float*>(g.values)[r * width + k];
          }
        }
      }
      const double weights[] = {0.5, -2.0, 1.0, 3.0};
      std::vector<double> first;
      for (const Simd* simd : Variants()) {
        for (int threads : {1, 3}) {
          std::vector<double> gramian(num_tasks * num_tasks, 0.0);
          AddSparseGramian(gradients, width, num_tasks, Threads(threads),
                           gramian.data(), *simd);
          for (int i = 0; i < num_tasks; ++i) {
            for (int j = 0; j < num_tasks; ++j) {
              double expected = 0.0;
              for (const auto& [id, a] : sums[i]) {
                const auto b = sums[j].find(id);
                if (b == sums[j].end()) continue;
                for (int64_t k = 0; k < width; ++k) expected += a[k] * b->second[k];
              }
              CHECK_CLOSE(gramian[i * num_tasks + j], expected, 1e-7);
            }
          }
          if (first.empty()) first = gramian;
          CHECK(simd != Variants()[0] ||
                std::memcmp(first.data(), gramian.data(), 8 * first.size()) == 0);
        }
        const SparseGroups groups(gradients);
        std::vector<float> out(groups.count() * width);
        CombineSparse(gradients, groups, width, weights, Threads(3), out.data(), *simd);
        for (int64_t g = 0; g < groups.count(); ++g) {
          for (int64_t k = 0; k < width; ++k) {
            double expected = 0.0;
            for (int t = 0; t < num_tasks; ++t) {
              const auto found = sums[t].find(groups.id(g));
              if (found != sums[t].end()) expected += weights[t] * found->second[k];
            }
            CHECK_CLOSE(out[g * width + k], expected, 1e-4);
          }
        }
      }
    }
  }
}

void TestMixtures() {
  std::mt19937 random(5);
  // Widths around the lanes, positions, one expert, and no samples at all.
  for (const MixtureShape shape : {MixtureShape{5, 1, 3, 1}, {7, 1, 8, 16},
                                   {3, 6, 2, 7}, {4, 2, 1, 13}, {0, 1, 2, 4}}) {
    const auto [batch, positions, experts, width] = shape;
    const int64_t size = batch * positions * width;
    const std::vector<float> weights = Random(&random, batch * experts);
    const std::vector<float> values = Random(&random, size * experts);
    const std::vector<float> gradient = Random(&random, size);
    for (int threads : {1, 3}) {
      std::vector<float> mixture(size), of_weights(weights.size()),
          of_values(values.size());
      MixExperts(shape, weights.data(), values.data(), Threads(threads),
                 mixture.data());
      MixExpertsGradient(shape, weights.data(), values.data(), gradient.data(),
                         Threads(threads), of_weights.data(), of_values.data());
      std::vector<double> expected(size), weights_expected(weights.size());
      for (int64_t i = 0; i < size * experts; ++i) {
        const int64_t row = i / (experts * width), e = i / width % experts;
        const int64_t weight = row / positions * experts + e;
        const int64_t place = row * width + i % width;
        expected[place] += static_cast<double>(weights[weight]) * values[i];
        weights_expected[weight] += static_cast<double>(gradient[place]) * values[i];
        CHECK_CLOSE(of_values[i], weights[weight] * gradient[place], 1e-6);
      }
      for (int64_t i = 0; i < size; ++i) CHECK_CLOSE(mixture[i], expected[i], 1e-5);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        CHECK_CLOSE(of_weights[i], weights_expected[i], 1e-4);
      }
    }
  }
}

}  // namespace
}  // namespace mtl_keras

int main() {
  for (const auto* simd : mtl_keras::Variants()) std::printf("%s\n", simd->name);
  mtl_keras::TestFactorsAndDescent();
  mtl_keras::TestGramianAndCombination();
  mtl_keras::TestUnaligned();
  mtl_keras::TestNarrowTypes();
  mtl_keras::TestGramianOfManyTasks();
  mtl_keras::TestWantOfMemoryReachesTheCaller();
  mtl_keras::TestSparse();
  mtl_keras::TestMixtures();
  std::printf("kernels: all as expected\n");
}

#include "kernels/mixture.h"

#include <algorithm>
#include <cstring>

namespace mtl_keras {
namespace {

// Registers that every processor has: larger ones gain little, as a mixture does two
// operations for each number that it reads.
constexpr int kLanes = 4;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// Unaligned: a reference to a less aligned vector is taken for aligned by clang.
inline Lanes Load(const float* x) {
  Lanes lanes;
  std::memcpy(&lanes, x, sizeof(lanes));
  return lanes;
}
inline void Store(Lanes lanes, float* x) { std::memcpy(x, &lanes, sizeof(lanes)); }

// target = weight * x, n elements; returns the inner product of x and y.
inline float ScaleAndMultiply(float weight, const float* x, const float* y, int64_t n,
                              float* target) {
  Lanes even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Lanes a = Load(x + i), b = Load(x + i + kLanes);
    Store(weight * a, target + i);
    Store(weight * b, target + i + kLanes);
    even += a * Load(y + i);
    odd += b * Load(y + i + kLanes);
  }
  even += odd;
  float sum = (even[0] + even[1]) + (even[2] + even[3]);
  for (; i < n; ++i) {
    target[i] = weight * x[i];
    sum += x[i] * y[i];
  }
  return sum;
}

// target = or += weight * x, n elements.
template <bool kFirst>
inline void AddScaled(float weight, const float* x, int64_t n, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes scaled = weight * Load(x + i);
    Store(kFirst ? scaled : Load(target + i) + scaled, target + i);
  }
  for (; i < n; ++i) target[i] = kFirst ? weight * x[i] : target[i] + weight * x[i];
}

// A guess at the cycles of one sample.
int64_t Cost(const MixtureShape& shape) {
  return 1 + shape.positions * shape.experts * (4 + shape.width / 2);
}

}  // namespace

void MixExperts(const MixtureShape& shape, const float* weights, const float* values,
                const ParallelFor& parallel_for, float* mixture) {
  const int64_t positions = shape.positions;
  const int64_t experts = shape.experts;
  const int64_t width = shape.width;
  const auto work = [=](int64_t begin, int64_t end) {
    for (int64_t row = begin * positions; row < end * positions; ++row) {
      const float* weight = weights + row / positions * experts;
      const float* value = values + row * experts * width;
      float* target = mixture + row * width;
      AddScaled<true>(weight[0], value, width, target);
      for (int64_t e = 1; e < experts; ++e) {
        AddScaled<false>(weight[e], value + e * width, width, target);
      }
    }
  };
  parallel_for(shape.batch, Cost(shape), work);
}

void MixExpertsGradient(const MixtureShape& shape, const float* weights,
                        const float* values, const float* gradient,
                        const ParallelFor& parallel_for, float* weights_gradient,
                        float* values_gradient) {
  const int64_t positions = shape.positions;
  const int64_t experts = shape.experts;
  const int64_t width = shape.width;
  const auto work = [=](int64_t begin, int64_t end) {
    std::fill(weights_gradient + begin * experts, weights_gradient + end * experts,
              0.0f);
    for (int64_t row = begin * positions; row < end * positions; ++row) {
      const int64_t first = row / positions * experts;
      const float* given = gradient + row * width;
      for (int64_t e = 0; e < experts; ++e) {
        const int64_t place = (row * experts + e) * width;
        weights_gradient[first + e] +=
            ScaleAndMultiply(weights[first + e], given, values + place, width,
                             values_gradient + place);
      }
    }
  };
  parallel_for(shape.batch, 2 * Cost(shape), work);
}

}  // namespace mtl_keras

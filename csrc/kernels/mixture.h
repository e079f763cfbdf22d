// Mixtures of experts by sample, and their gradients, in float32.
#ifndef MTL_KERAS_KERNELS_MIXTURE_H_
#define MTL_KERAS_KERNELS_MIXTURE_H_

#include <cstdint>

#include "kernels/parallel.h"

namespace mtl_keras {

// Weights are [batch, experts], what experts gave is [batch, positions, experts,
// width], and a mixture is [batch, positions, width].
struct MixtureShape {
  int64_t batch = 0;
  int64_t positions = 0;
  int64_t experts = 0;
  int64_t width = 0;
};

// mixture[b, p] = sum over e of weights[b, e] * values[b, p, e].
void MixExperts(const MixtureShape& shape, const float* weights, const float* values,
                const ParallelFor& parallel_for, float* mixture);

// From the gradient of the mixture, those of the weights and of the values, in one
// pass over the values.
void MixExpertsGradient(const MixtureShape& shape, const float* weights,
                        const float* values, const float* gradient,
                        const ParallelFor& parallel_for, float* weights_gradient,
                        float* values_gradient);

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_MIXTURE_H_

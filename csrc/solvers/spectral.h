// Closed forms from eigenvalues: IMTL-G, ConFIG and Aligned-MTL.
#ifndef MTL_KERAS_SOLVERS_SPECTRAL_H_
#define MTL_KERAS_SOLVERS_SPECTRAL_H_

namespace mtl_keras {

// The functions below write [T] weights, and return whether they are the solution.
// `precision` is that of the gradients, see problem.h.

// Equal projections of the update on all unit gradients (IMTL-G). Sums to 1.
bool ImtlG(const double* gramian, int size, double precision, double* weights);

// Equal cosines with all gradients, and the length that adds them up (ConFIG). In sum
// scale.
bool Config(const double* gramian, int size, double precision, double* weights);

// In the order of SCALE_MODES in mtl_keras/ops/solvers/spectral.py.
enum ScaleMode { kLeast, kMedian, kMean, kNumScaleModes };

// Principal components of equal length (Aligned-MTL). In mean scale.
bool Aligned(const double* gramian, int size, ScaleMode mode, double precision,
             double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_SPECTRAL_H_

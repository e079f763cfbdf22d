#ifndef MTL_KERAS_SOLVERS_CONIC_H_
#define MTL_KERAS_SOLVERS_CONIC_H_

namespace mtl_keras {

// CAGrad: the update g_0 + c |g_0| g_w / |g_w| for the w that minimises
// w' G b + c |g_0| sqrt(w' G w) over the simplex, b = 1/T. In mean scale. Where that
// minimum is at g_w = 0, the nearest update to g_0 that hurts no task. `precision` is
// that of the gradients, see problem.h.
bool CaGrad(const double* gramian, int size, double c, double precision,
            double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_CONIC_H_

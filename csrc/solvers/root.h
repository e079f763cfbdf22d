#ifndef MTL_KERAS_SOLVERS_ROOT_H_
#define MTL_KERAS_SOLVERS_ROOT_H_

namespace mtl_keras {

// The root of G w = s w^(-1/alpha), w > 0 (Nash-MTL with alpha = 1, FairGrad). Without
// one, as at Pareto-stationary points, the weights are 1 and not converged. `shares` is
// s, positive, or null for ones. `precision` is that of the gradients, see problem.h.
bool PowerRoot(const double* gramian, int size, double alpha, const double* shares,
               double precision, double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_ROOT_H_

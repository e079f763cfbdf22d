// Pairwise projections in the space of coefficients: PCGrad and GradVac. Both are
// in sum scale; `orders` is [T, T - 1], entries in [0, T): the order in which task i
// meets the others.
#ifndef MTL_KERAS_SOLVERS_PROJECTION_H_
#define MTL_KERAS_SOLVERS_PROJECTION_H_

#include <cstdint>

namespace mtl_keras {

bool PcGrad(const double* gramian, int size, const int32_t* orders, double* weights);

// `goals` [T, T], the moving averages of the cosines, is replaced by the new ones,
// and left alone where not converged. `precision` is that of the gradients, see
// problem.h: one that has cancelled to less points nowhere and has cosines of 0.
bool GradVac(const double* gramian, int size, const int32_t* orders, double beta,
             double precision, double* goals, double* weights);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_PROJECTION_H_

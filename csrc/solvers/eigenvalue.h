#ifndef MTL_KERAS_SOLVERS_EIGENVALUE_H_
#define MTL_KERAS_SOLVERS_EIGENVALUE_H_

#include "solvers/problem.h"

namespace mtl_keras {

// The smallest eigenvalue of a symmetric matrix, by Jacobi rotations: slower than
// other ways, but needed only for Gram matrices spoilt by rounding.
double SmallestEigenvalue(Matrix matrix);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_EIGENVALUE_H_

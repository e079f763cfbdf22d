#ifndef MTL_KERAS_SOLVERS_EIGENVALUE_H_
#define MTL_KERAS_SOLVERS_EIGENVALUE_H_

#include "solvers/problem.h"

namespace mtl_keras {

// A symmetric matrix is the sum of values[k] v v' over the rows v of `vectors`.
struct Spectrum {
  Vector values;  // ascending
  Matrix vectors;
};

// By Jacobi rotations, which are slower than other ways but keep the digits of small
// eigenvalues of matrices whose rows differ in size.
Spectrum Decompose(Matrix matrix);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_EIGENVALUE_H_

// Gram matrix and combination of dense gradients.
#ifndef MTL_KERAS_KERNELS_GRAM_H_
#define MTL_KERAS_KERNELS_GRAM_H_

#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/parallel.h"
#include "kernels/simd.h"

namespace mtl_keras {

// The gradients of one variable: those of the tasks that have one.
struct Column {
  int64_t size = 0;  // elements of each gradient
  std::vector<int> tasks;  // ascending
  std::vector<const void*> rows;
  std::vector<DType> dtypes;
};

// Writes the symmetric [num_tasks, num_tasks] matrix of inner products over all
// columns, added up in double.
//
// The elements are cut into pieces that depend on the sizes alone; each pair of tasks
// is summed by one thread within a piece, and the sums are added in order. The result
// therefore has the same bits whatever the number of threads.
//
// Scratch memory: at most 64 MiB, and 4 MiB for each thread. Throws std::bad_alloc,
// from `parallel_for` too.
void TaskGramian(const std::vector<Column>& columns, int num_tasks,
                 const ParallelFor& parallel_for, double* out,
                 const Simd& simd = BestSimd());

// outs[v] = sum of weights[task] * gradient over the column's tasks, in one pass.
// All gradients of a column have one dtype, which is the output's. The output may
// take the place of the column's first gradient.
void CombineTaskGradients(const std::vector<Column>& columns, const double* weights,
                          const ParallelFor& parallel_for,
                          const std::vector<void*>& outs,
                          const Simd& simd = BestSimd());

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_GRAM_H_

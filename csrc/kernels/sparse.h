// Gram matrix and combination of sparse gradients: rows of a table, with ids.
#ifndef MTL_KERAS_KERNELS_SPARSE_H_
#define MTL_KERAS_KERNELS_SPARSE_H_

#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/parallel.h"
#include "kernels/simd.h"

namespace mtl_keras {

// One task's gradient of one variable: `count` rows of `width` elements.
struct SparseGradient {
  int task;
  const void* values;
  DType dtype;
  const void* ids;
  bool wide_ids;  // int64 rather than int32
  int64_t count;

  int64_t id(int64_t row) const {
    return wide_ids ? static_cast<const int64_t*>(ids)[row]
                    : static_cast<const int32_t*>(ids)[row];
  }
};

// The rows of several gradients, brought together by their ids.
//
// Memory and time follow the number of rows; the size of the table plays no part.
class SparseGroups {
 public:
  struct Entry {
    int32_t gradient;  // index into the list of gradients
    int64_t row;
  };

  // Distinct ids keep the order of their first appearance, and the entries of an
  // id the order of the gradients.
  explicit SparseGroups(const std::vector<SparseGradient>& gradients);

  int64_t count() const { return static_cast<int64_t>(ids_.size()); }
  int64_t id(int64_t group) const { return ids_[group]; }
  const Entry* begin(int64_t group) const { return entries_.data() + starts_[group]; }
  const Entry* end(int64_t group) const { return entries_.data() + starts_[group + 1]; }
  int64_t num_entries() const { return static_cast<int64_t>(entries_.size()); }

 private:
  std::vector<int64_t> ids_;
  std::vector<int64_t> starts_;
  std::vector<Entry> entries_;
};

// Adds one variable's inner products to `out`, [num_tasks, num_tasks]. Rows of the
// same id inside one gradient count as their sum. Same bits for any thread count.
//
// Scratch memory: at most 256 MiB, or 112 n² bytes for n gradients, besides what
// follows the number of rows. Throws std::bad_alloc, from `parallel_for` too.
void AddSparseGramian(const std::vector<SparseGradient>& gradients, int64_t width,
                      int num_tasks, const ParallelFor& parallel_for, double* out,
                      const Simd& simd = BestSimd());

// Writes the weighted sum of one variable's gradients: one row of `values` per
// group. All gradients have one dtype, which is the output's.
void CombineSparse(const std::vector<SparseGradient>& gradients,
                   const SparseGroups& groups, int64_t width, const double* weights,
                   const ParallelFor& parallel_for, void* values,
                   const Simd& simd = BestSimd());

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_SPARSE_H_

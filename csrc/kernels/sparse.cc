#include "kernels/sparse.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/workspace.h"

namespace mtl_keras {
namespace {

constexpr int64_t kMaxPieces = 64;
// Doubles of scratch memory for all pieces together, unless one alone needs more.
constexpr int64_t kMaxScratch = 32 * 1024 * 1024;
constexpr int64_t kGroupsPerPiece = 512;
// Fewer rows than that cost more in setting up the products of whole rows.
constexpr int64_t kShortestRun = 4;

// Maps ids to consecutive numbers: open addressing with linear probing.
class Numbering {
 public:
  explicit Numbering(int64_t most) {
    while ((int64_t{1} << bits_) < most + most / 2) ++bits_;
    slots_.assign(std::size_t{1} << bits_, Slot{0, -1});
  }

  int32_t Number(int64_t id, std::vector<int64_t>* ids) {
    const std::size_t mask = slots_.size() - 1;
    // Fibonacci hashing: consecutive ids land far apart.
    std::size_t place = (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull) >> (64 - bits_);
    while (true) {
      Slot& slot = slots_[place];
      if (slot.number < 0) {
        slot = {id, static_cast<int32_t>(ids->size())};
        ids->push_back(id);
        return slot.number;
      }
      if (slot.id == id) return slot.number;
      place = (place + 1) & mask;
    }
  }

 private:
  struct Slot {
    int64_t id;
    int32_t number;
  };
  int bits_ = 4;
  std::vector<Slot> slots_;
};

const void* RowOf(const SparseGradient& gradient, int64_t row, int64_t width) {
  return static_cast<const char*>(gradient.values) +
         row * width * static_cast<int64_t>(SizeOf(gradient.dtype));
}

// Tasks that read the same table in the same step have the same ids.
bool SameIds(const SparseGradient& a, const SparseGradient& b) {
  const std::size_t bytes = a.count * (a.wide_ids ? sizeof(int64_t) : sizeof(int32_t));
  return a.count == b.count && a.wide_ids == b.wide_ids &&
         (a.ids == b.ids || bytes == 0 || std::memcmp(a.ids, b.ids, bytes) == 0);
}

// Whether a group is one row of every gradient, at the same place in each: `row`.
bool IsPlain(const SparseGroups& groups, int64_t group, std::size_t num_gradients,
             int64_t* row) {
  const auto* entries = groups.begin(group);
  if (groups.end(group) - entries != static_cast<std::ptrdiff_t>(num_gradients)) {
    return false;
  }
  for (std::size_t i = 0; i < num_gradients; ++i) {
    if (entries[i].gradient != static_cast<int32_t>(i)) return false;
    if (entries[i].row != entries[0].row) return false;
  }
  *row = entries[0].row;
  return true;
}

// The end of the run of groups from `group` on that are plain and whose rows follow
// each other from `row` on.
int64_t EndOfRun(const SparseGroups& groups, int64_t group, int64_t end,
                 std::size_t num_gradients, int64_t* row) {
  if (!IsPlain(groups, group, num_gradients, row)) return group;
  int64_t next;
  int64_t length = 1;
  while (group + length < end &&
         IsPlain(groups, group + length, num_gradients, &next) &&
         next == *row + length) {
    ++length;
  }
  return group + length;
}

}  // namespace

SparseGroups::SparseGroups(const std::vector<SparseGradient>& gradients) {
  int64_t total = 0, most = 0;
  std::vector<char> repeated(gradients.size(), 0);
  for (std::size_t g = 0; g < gradients.size(); ++g) {
    repeated[g] = g > 0 && SameIds(gradients[g], gradients[g - 1]);
    total += gradients[g].count;
    if (!repeated[g]) most += gradients[g].count;
  }
  Numbering numbering(most);
  std::vector<int32_t> groups;
  groups.reserve(total);
  for (std::size_t g = 0; g < gradients.size(); ++g) {
    const int64_t count = gradients[g].count;
    if (repeated[g]) {
      const std::size_t before = groups.size() - count;
      for (int64_t row = 0; row < count; ++row) groups.push_back(groups[before + row]);
      continue;
    }
    for (int64_t row = 0; row < count; ++row) {
      groups.push_back(numbering.Number(gradients[g].id(row), &ids_));
    }
  }
  // Counting sort, which keeps the order inside each group.
  starts_.assign(ids_.size() + 1, 0);
  for (int32_t group : groups) ++starts_[group + 1];
  for (std::size_t g = 0; g < ids_.size(); ++g) starts_[g + 1] += starts_[g];
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  entries_.resize(total);
  std::size_t i = 0;
  for (std::size_t g = 0; g < gradients.size(); ++g) {
    for (int64_t row = 0; row < gradients[g].count; ++row) {
      entries_[next[groups[i++]]++] = {static_cast<int32_t>(g), row};
    }
  }
}

void AddSparseGramian(const std::vector<SparseGradient>& gradients, int64_t width,
                      int num_tasks, const ParallelFor& parallel_for, double* out,
                      const Simd& simd) {
  const SparseGroups groups(gradients);
  const int num_gradients = static_cast<int>(gradients.size());
  const int64_t square = static_cast<int64_t>(num_gradients) * num_gradients;
  // Sums, their lanes, and what the products of whole rows take.
  const int64_t scratch = 10 * square + simd.gram_workspace(num_gradients);
  const int64_t max_pieces = std::clamp<int64_t>(kMaxScratch / scratch, 1, kMaxPieces);
  const int64_t size =
      std::max(kGroupsPerPiece, (groups.count() + max_pieces - 1) / max_pieces);
  const int64_t pieces = (groups.count() + size - 1) / size;
  const int64_t padded = (width + 7) / 8 * 8;
  std::vector<double> sums(pieces * square, 0.0);
  std::vector<const void*> values;
  std::vector<DType> dtypes;
  for (const SparseGradient& gradient : gradients) {
    values.push_back(gradient.values);
    dtypes.push_back(gradient.dtype);
  }
  const int64_t per_group = groups.num_entries() / std::max<int64_t>(groups.count(), 1);
  const int64_t cost = size * (1 + per_group * (per_group + 1)) * (width / 8 + 10);
  parallel_for(pieces, cost, [&](int64_t first, int64_t last) {
    std::vector<double> rows(gradients.size() * padded, 0.0);
    std::vector<double> lanes(square * 8);
    std::vector<int> present(gradients.size());
    Workspace workspace(simd.gram_workspace(num_gradients));
    std::vector<double> part(square);
    for (int64_t piece = first; piece < last; ++piece) {
      std::fill(lanes.begin(), lanes.end(), 0.0);
      const int64_t end = std::min(groups.count(), (piece + 1) * size);
      double* sum = sums.data() + piece * square;
      for (int64_t group = piece * size; group < end; ++group) {
        // Tasks that looked up the same ids, most of them once, have runs of rows
        // that are like dense gradients.
        int64_t row = 0;
        const int64_t stop = EndOfRun(groups, group, end, gradients.size(), &row);
        if (stop - group >= kShortestRun) {
          simd.gram(values.data(), dtypes.data(), num_gradients, row * width,
                    (row + stop - group) * width, workspace.get(), part.data());
          for (int64_t i = 0; i < square; ++i) sum[i] += part[i];
          group = stop - 1;
          continue;
        }
        int count = 0;
        int32_t previous = -1;
        for (const auto* e = groups.begin(group); e != groups.end(group); ++e) {
          const SparseGradient& gradient = gradients[e->gradient];
          const bool is_new = e->gradient != previous;
          if (is_new) present[count++] = e->gradient;
          previous = e->gradient;
          simd.widen(RowOf(gradient, e->row, width), gradient.dtype, width, is_new,
                     rows.data() + (count - 1) * padded);
        }
        simd.add_pairs(rows.data(), present.data(), count, padded, num_gradients,
                       lanes.data());
      }
      for (int64_t i = 0; i < square; ++i) {
        for (int lane = 0; lane < 8; ++lane) sum[i] += lanes[i * 8 + lane];
      }
    }
  });
  // The triangle that is filled for pairs of any rows.
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const double* sum = sums.data() + piece * square;
    for (int i = 0; i < num_gradients; ++i) {
      for (int j = 0; j <= i; ++j) {
        const int64_t row = gradients[i].task, column = gradients[j].task;
        const double value = sum[i * static_cast<int64_t>(num_gradients) + j];
        out[row * num_tasks + column] += value;
        if (i != j) out[column * num_tasks + row] += value;
      }
    }
  }
}

void CombineSparse(const std::vector<SparseGradient>& gradients,
                   const SparseGroups& groups, int64_t width, const double* weights,
                   const ParallelFor& parallel_for, void* values, const Simd& simd) {
  if (groups.count() == 0 || width == 0) return;
  const DType dtype = gradients[0].dtype;
  const int64_t row_bytes = width * static_cast<int64_t>(SizeOf(dtype));
  const int64_t per_group = 1 + groups.num_entries() / groups.count();
  parallel_for(groups.count(), per_group * (width + 20), [&](int64_t first, int64_t last) {
    std::vector<const void*> rows;
    std::vector<double> shares;
    for (int64_t group = first; group < last;) {
      rows.clear();
      shares.clear();
      for (const auto* e = groups.begin(group); e != groups.end(group); ++e) {
        rows.push_back(RowOf(gradients[e->gradient], e->row, width));
        shares.push_back(weights[gradients[e->gradient].task]);
      }
      // One sum for a whole run of rows that belong together.
      int64_t row = 0;
      const int64_t stop = EndOfRun(groups, group, last, gradients.size(), &row);
      const int64_t count = std::max<int64_t>(stop - group, 1);
      simd.combine(rows.data(), shares.data(), static_cast<int>(rows.size()), dtype, 0,
                   count * width, static_cast<char*>(values) + group * row_bytes);
      group += count;
    }
  });
}

}  // namespace mtl_keras

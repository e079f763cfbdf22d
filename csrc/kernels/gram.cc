#include "kernels/gram.h"

#include <algorithm>
#include <cstddef>

#include "kernels/workspace.h"

namespace mtl_keras {
namespace {

// Pieces of work hold about so many elements per task, but there are at most so
// many pieces: each needs a matrix of its own.
constexpr int64_t kPiece = 32 * 1024;
constexpr int64_t kMostPieces = 256;

// A range of elements of one column.
struct Span {
  int column;
  int64_t begin;
  int64_t end;
};

// Cuts all columns into pieces; piece p is spans [starts[p], starts[p + 1]).
struct Pieces {
  std::vector<Span> spans;
  std::vector<std::size_t> starts;

  Pieces(const std::vector<Column>& columns, int64_t block) {
    int64_t total = 0;
    for (const Column& column : columns) total += column.size;
    int64_t size = std::max(kPiece, total / kMostPieces);
    size = (size + block - 1) / block * block;
    int64_t room = 0;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      for (int64_t begin = 0; begin < columns[c].size;) {
        if (room <= 0) {
          starts.push_back(spans.size());
          room = size;
        }
        const int64_t end = std::min(columns[c].size, begin + room);
        spans.push_back({static_cast<int>(c), begin, end});
        room -= end - begin;
        begin = end;
      }
    }
    starts.push_back(spans.size());
  }

  int64_t count() const { return static_cast<int64_t>(starts.size()) - 1; }
};

int64_t LargestRows(const std::vector<Column>& columns) {
  std::size_t rows = 1;
  for (const Column& column : columns) rows = std::max(rows, column.rows.size());
  return static_cast<int64_t>(rows);
}

}  // namespace

void TaskGramian(const std::vector<Column>& columns, int num_tasks,
                 const ParallelFor& parallel_for, double* out, const Simd& simd) {
  const int64_t square = static_cast<int64_t>(num_tasks) * num_tasks;
  std::fill_n(out, square, 0.0);
  const Pieces pieces(columns, kGramBlock);
  const int64_t most_rows = LargestRows(columns);
  std::vector<double> sums(pieces.count() * square, 0.0);
  const int64_t pairs = most_rows * (most_rows + 1) / 2;
  const int64_t cost = kPiece * (most_rows + pairs / 4);
  parallel_for(pieces.count(), cost, [&](int64_t first, int64_t last) {
    Workspace workspace(simd.gram_workspace(static_cast<int>(most_rows)));
    std::vector<double> part(most_rows * most_rows);
    for (int64_t piece = first; piece < last; ++piece) {
      double* sum = sums.data() + piece * square;
      for (std::size_t s = pieces.starts[piece]; s < pieces.starts[piece + 1]; ++s) {
        const Span& span = pieces.spans[s];
        const Column& column = columns[span.column];
        const int rows = static_cast<int>(column.rows.size());
        if (rows == 0) continue;
        simd.gram(column.rows.data(), column.dtypes.data(), rows, span.begin, span.end,
                  workspace.get(), part.data());
        for (int i = 0; i < rows; ++i) {
          double* target = sum + static_cast<int64_t>(column.tasks[i]) * num_tasks;
          for (int j = 0; j < rows; ++j) target[column.tasks[j]] += part[i * rows + j];
        }
      }
    }
  });
  for (int64_t piece = 0; piece < pieces.count(); ++piece) {
    const double* sum = sums.data() + piece * square;
    for (int64_t i = 0; i < square; ++i) out[i] += sum[i];
  }
}

void CombineTaskGradients(const std::vector<Column>& columns, const double* weights,
                          const ParallelFor& parallel_for,
                          const std::vector<void*>& outs, const Simd& simd) {
  const Pieces pieces(columns, kCombineBlock);
  const int64_t most_rows = LargestRows(columns);
  std::vector<std::vector<double>> shares(columns.size());
  for (std::size_t c = 0; c < columns.size(); ++c) {
    for (int task : columns[c].tasks) shares[c].push_back(weights[task]);
  }
  parallel_for(pieces.count(), kPiece * most_rows, [&](int64_t first, int64_t last) {
    const std::size_t end = pieces.starts[last];
    for (std::size_t s = pieces.starts[first]; s < end; ++s) {
      const Span& span = pieces.spans[s];
      const Column& column = columns[span.column];
      if (column.rows.empty()) continue;
      simd.combine(column.rows.data(), shares[span.column].data(),
                   static_cast<int>(column.rows.size()), column.dtypes[0], span.begin,
                   span.end, outs[span.column]);
    }
  });
}

}  // namespace mtl_keras

#include "kernels/gram.h"

#include <algorithm>
#include <cstddef>

#include "kernels/workspace.h"

namespace mtl_keras {
namespace {

// Pieces of work hold about so many elements per task, but there are at most so
// many pieces: each needs a matrix of its own, and these take at most so many doubles.
constexpr int64_t kPiece = 32 * 1024;
constexpr int64_t kMaxPieces = 256;
constexpr int64_t kMaxScratch = 8 * 1024 * 1024;

// More tasks than that are multiplied group by group, as the workspace of a thread
// grows with the square of the rows that are multiplied at once.
constexpr int kMaxRows = 256;
constexpr int kGroup = kMaxRows / 2;

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

  Pieces(const std::vector<Column>& columns, int64_t block, int64_t max_pieces) {
    int64_t total = 0;
    for (const Column& column : columns) total += column.size;
    int64_t size = std::max(kPiece, total / max_pieces);
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

// The tasks [first, first + count).
struct TaskRange {
  int first;
  int count;
};

// Two groups of tasks to be multiplied with each other; one that is multiplied with
// itself has an empty second group.
struct GroupPair {
  TaskRange a;
  TaskRange b;
};

std::vector<GroupPair> GroupPairs(int num_tasks) {
  const int size = num_tasks <= kMaxRows ? num_tasks : kGroup;
  std::vector<GroupPair> pairs;
  for (int a = 0; a < num_tasks; a += size) {
    const TaskRange first{a, std::min(size, num_tasks - a)};
    pairs.push_back({first, {a, 0}});
    for (int b = 0; b < a; b += size) pairs.push_back({first, {b, size}});
  }
  return pairs;
}

// The rows of a column that belong to a pair of groups.
struct Rows {
  std::vector<int> tasks;
  std::vector<const void*> rows;
  std::vector<DType> dtypes;
  int split = 0;  // how many of them are of the second group

  void Read(const Column& column, const GroupPair& pair) {
    tasks.clear();
    rows.clear();
    dtypes.clear();
    Add(column, pair.b);
    split = static_cast<int>(tasks.size());
    Add(column, pair.a);
  }

  void Add(const Column& column, const TaskRange& range) {
    const auto from =
        std::lower_bound(column.tasks.begin(), column.tasks.end(), range.first);
    for (std::size_t i = from - column.tasks.begin();
         i < column.tasks.size() && column.tasks[i] < range.first + range.count; ++i) {
      tasks.push_back(column.tasks[i]);
      rows.push_back(column.rows[i]);
      dtypes.push_back(column.dtypes[i]);
    }
  }
};

// Adds the products of one piece to `sum`, [num_tasks, num_tasks], for one pair of
// groups, of which no other writes the same entries.
void AddPiece(const std::vector<Column>& columns, const Pieces& pieces, int64_t piece,
              const GroupPair& pair, int num_tasks, const Simd& simd, double* workspace,
              Rows* rows, double* part, double* sum) {
  for (std::size_t s = pieces.starts[piece]; s < pieces.starts[piece + 1]; ++s) {
    const Span& span = pieces.spans[s];
    rows->Read(columns[span.column], pair);
    const int count = static_cast<int>(rows->rows.size());
    const bool is_diagonal = pair.b.count == 0;
    // Without rows of both groups there are no products between them.
    if (count == 0 || (!is_diagonal && (rows->split == 0 || rows->split == count))) {
      continue;
    }
    simd.gram(rows->rows.data(), rows->dtypes.data(), count, span.begin, span.end,
              workspace, part);
    for (int i = rows->split; i < count; ++i) {
      for (int j = 0; j < (is_diagonal ? count : rows->split); ++j) {
        const int64_t row = rows->tasks[i], column = rows->tasks[j];
        sum[row * num_tasks + column] += part[i * count + j];
        if (!is_diagonal) sum[column * num_tasks + row] += part[i * count + j];
      }
    }
  }
}

}  // namespace

void TaskGramian(const std::vector<Column>& columns, int num_tasks,
                 const ParallelFor& parallel_for, double* out, const Simd& simd) {
  const int64_t square = static_cast<int64_t>(num_tasks) * num_tasks;
  std::fill_n(out, square, 0.0);
  const int64_t max_pieces = std::clamp<int64_t>(kMaxScratch / square, 1, kMaxPieces);
  const Pieces pieces(columns, kGramBlock, max_pieces);
  if (pieces.count() == 0) return;
  // The first piece is summed in place.
  std::vector<double> sums((pieces.count() - 1) * square, 0.0);
  const std::vector<GroupPair> pairs = GroupPairs(num_tasks);
  const int64_t num_pairs = static_cast<int64_t>(pairs.size());
  const int64_t most_rows = std::min<int64_t>(LargestRows(columns), kMaxRows);
  const int64_t cost = kPiece * (most_rows + most_rows * (most_rows + 1) / 8);
  parallel_for(pieces.count() * num_pairs, cost, [&](int64_t first, int64_t last) {
    Workspace workspace(simd.gram_workspace(static_cast<int>(most_rows)));
    std::vector<double> part(most_rows * most_rows);
    Rows rows;
    for (int64_t item = first; item < last; ++item) {
      const int64_t piece = item / num_pairs;
      AddPiece(columns, pieces, piece, pairs[item % num_pairs], num_tasks, simd,
               workspace.get(), &rows, part.data(),
               piece == 0 ? out : sums.data() + (piece - 1) * square);
    }
  });
  for (int64_t piece = 1; piece < pieces.count(); ++piece) {
    const double* sum = sums.data() + (piece - 1) * square;
    for (int64_t i = 0; i < square; ++i) out[i] += sum[i];
  }
}

void CombineTaskGradients(const std::vector<Column>& columns, const double* weights,
                          const ParallelFor& parallel_for,
                          const std::vector<void*>& outs, const Simd& simd) {
  const Pieces pieces(columns, kCombineBlock, kMaxPieces);
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

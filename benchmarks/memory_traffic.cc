// Reads rows twice and writes one result: the memory traffic of Gram matrix and
// combination, without their arithmetic. Built and called by ops.py.
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

extern "C" uint64_t memory_traffic(const uint64_t* const* rows, int64_t num_rows,
                                   int64_t words, uint64_t* out, int num_threads) {
  std::vector<uint64_t> sums(num_threads * 8);
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([=, &sums] {
      const int64_t begin = words * t / num_threads, end = words * (t + 1) / num_threads;
      uint64_t sum = 0;
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t i = begin; i < end; ++i) sum += rows[r][i];
      }
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t i = begin; i < end; ++i) sum ^= rows[r][i];
      }
      std::memset(out + begin, 1, (end - begin) * sizeof(uint64_t));
      sums[t * 8] = sum;
    });
  }
  for (auto& thread : threads) thread.join();
  uint64_t total = 0;
  for (int t = 0; t < num_threads; ++t) total += sums[t * 8];
  return total;
}

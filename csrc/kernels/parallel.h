// How kernels run on threads that belong to someone else.
#ifndef MTL_KERAS_KERNELS_PARALLEL_H_
#define MTL_KERAS_KERNELS_PARALLEL_H_

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <utility>

namespace mtl_keras {

// Calls work(begin, end) over ranges that cover [0, total), each element once, in
// any order and on any threads. `cost` is a guess at the cycles per element.
using ParallelFor = std::function<void(
    int64_t total, int64_t cost, const std::function<void(int64_t, int64_t)>& work)>;

// Returns a ParallelFor whose work may throw, as for want of memory: the caller gets
// the first exception, on its own thread, once nothing works any more. `inner` never
// sees one, as a thread that an exception leaves ends the process.
inline ParallelFor Rethrowing(ParallelFor inner) {
  return [inner = std::move(inner)](
             int64_t total, int64_t cost,
             const std::function<void(int64_t, int64_t)>& work) {
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    inner(total, cost, [&](int64_t begin, int64_t end) {
      if (failed.load()) return;
      try {
        work(begin, end);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
}

inline void Serially(int64_t total, int64_t /*cost*/,
                     const std::function<void(int64_t, int64_t)>& work) {
  if (total > 0) work(0, total);
}

}  // namespace mtl_keras

#endif  // MTL_KERAS_KERNELS_PARALLEL_H_

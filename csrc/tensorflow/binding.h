// What the bindings to TensorFlow share.
#ifndef MTL_KERAS_TENSORFLOW_BINDING_H_
#define MTL_KERAS_TENSORFLOW_BINDING_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"
#include "kernels/parallel.h"
#include "solvers/calls.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace mtl_keras {

// An op whose computation may throw for want of memory, on any of its threads: that
// is the op's error, as an exception that reaches TensorFlow ends the process.
class Kernel : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tensorflow::OpKernelContext* context) final;

 protected:
  virtual void Run(tensorflow::OpKernelContext* context) = 0;
};

// Runs on the thread pool that TensorFlow gives to CPU kernels.
inline ParallelFor OnThreadsOf(tensorflow::OpKernelContext* context) {
  auto* threads = context->device()->tensorflow_cpu_worker_threads();
  if (threads == nullptr || threads->num_threads <= 1) return Serially;
  tsl::thread::ThreadPool* pool = threads->workers;
  return Rethrowing([pool](int64_t total, int64_t cost,
                           const std::function<void(int64_t, int64_t)>& work) {
    if (total == 1) return work(0, 1);
    const auto params = tsl::thread::ThreadPool::SchedulingParams::Adaptive(cost);
    pool->ParallelFor(total, params, work);
  });
}

inline DType DTypeOf(const tensorflow::Tensor& tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_HALF:
      return DType::kHalf;
    case tensorflow::DT_BFLOAT16:
      return DType::kBfloat16;
    case tensorflow::DT_FLOAT:
      return DType::kFloat;
    default:
      return DType::kDouble;
  }
}

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Where the flat list of gradients of an op belongs: gradient i is that of task
// tasks[i] on variable variables[i]. Checked, so that kernels may index with it:
// tasks lie in [0, num_tasks), variables start at 0 and grow by at most one, tasks
// grow within a variable.
struct Places {
  int num_tasks = 0;
  int num_variables = 0;
  std::vector<int> tasks;
  std::vector<int> variables;
  std::vector<int> names;  // what the caller calls the variables

  absl::Status Read(tensorflow::OpKernelConstruction* context, int count);
};

// Whether the outputs of a combination fit: one for each variable, in the dtype of its
// gradients, which are the inputs from 1 on.
absl::Status CheckCombination(tensorflow::OpKernelConstruction* context,
                              const Places& places, int num_outputs);

// Sets `weights` to input 0 of a combination, one weight for each task.
absl::Status ReadWeights(tensorflow::OpKernelContext* context, const Places& places,
                         const double** weights);

// The solver of an op or of a kernel that XLA compiles.
const Solver& SolverOf(const tensorflow::OpKernelConstruction* context);

// Sets a [num_tasks, num_tasks] output.
absl::Status SquareShape(tensorflow::shape_inference::InferenceContext* context);

}  // namespace mtl_keras

#endif  // MTL_KERAS_TENSORFLOW_BINDING_H_

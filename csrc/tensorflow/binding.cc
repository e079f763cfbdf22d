#include "tensorflow/binding.h"

#include <new>
#include <stdexcept>

#include "tensorflow/core/framework/shape_inference.h"

namespace mtl_keras {
namespace {

void OutOfMemory(tensorflow::OpKernelContext* context, const std::string& name) {
  context->CtxFailure(absl::ResourceExhaustedError(
      absl::StrCat("Not enough memory for the scratch space of ", name, ".")));
}

}  // namespace

void Kernel::Compute(tensorflow::OpKernelContext* context) {
  try {
    Run(context);
  } catch (const std::bad_alloc&) {
    OutOfMemory(context, type_string());
  } catch (const std::length_error&) {
    OutOfMemory(context, type_string());
  }
}

absl::Status Places::Read(tensorflow::OpKernelConstruction* context, int count) {
  TF_RETURN_IF_ERROR(context->GetAttr("num_tasks", &num_tasks));
  TF_RETURN_IF_ERROR(context->GetAttr("tasks", &tasks));
  TF_RETURN_IF_ERROR(context->GetAttr("variables", &variables));
  TF_RETURN_IF_ERROR(context->GetAttr("names", &names));
  const int given = static_cast<int>(tasks.size());
  if (given != count || static_cast<int>(variables.size()) != count) {
    return InvalidArgument("Expected a task and a variable for each of the ", count,
                           " gradients. Received: ", given, " tasks and ",
                           variables.size(), " variables.");
  }
  for (int i = 0; i < count; ++i) {
    if (tasks[i] < 0 || tasks[i] >= num_tasks) {
      return InvalidArgument("Expected tasks in [0, ", num_tasks, "). Received: task ",
                             tasks[i], " for gradient ", i, ".");
    }
    const int previous = i > 0 ? variables[i - 1] : -1;
    const bool same = i > 0 && variables[i] == previous;
    if (!same && variables[i] != previous + 1) {
      return InvalidArgument("Expected variables in ascending order without gaps. ",
                             "Received: variable ", variables[i], " after ", previous,
                             ".");
    }
    if (same && tasks[i] <= tasks[i - 1]) {
      return InvalidArgument("Expected tasks in ascending order. Received: task ",
                             tasks[i], " after ", tasks[i - 1], " for variable ",
                             variables[i], ".");
    }
  }
  num_variables = count > 0 ? variables.back() + 1 : 0;
  if (static_cast<int>(names.size()) != num_variables) {
    return InvalidArgument("Expected a name for each of the ", num_variables,
                           " variables. Received: ", names.size(), " names.");
  }
  return absl::OkStatus();
}

absl::Status CheckCombination(tensorflow::OpKernelConstruction* context,
                              const Places& places, int num_outputs) {
  if (places.num_variables != num_outputs) {
    return InvalidArgument("Expected one output dtype per variable. Received: ",
                           num_outputs, " for ", places.num_variables, " variables.");
  }
  for (std::size_t i = 0; i < places.tasks.size(); ++i) {
    const int input = static_cast<int>(i) + 1;
    const int variable = places.variables[i];
    if (context->input_type(input) == context->output_type(variable)) continue;
    return InvalidArgument("Expected gradients of one dtype for variable ",
                           places.names[variable], ". Received: ",
                           tensorflow::DataTypeString(context->input_type(input)),
                           " for task ", places.tasks[i], ".");
  }
  return absl::OkStatus();
}

absl::Status ReadWeights(tensorflow::OpKernelContext* context, const Places& places,
                         const double** weights) {
  const tensorflow::Tensor& input = context->input(0);
  if (input.shape() != tensorflow::TensorShape({places.num_tasks})) {
    return InvalidArgument("Expected one weight for each of the ", places.num_tasks,
                           " tasks. Received: weights of shape ",
                           input.shape().DebugString(), ".");
  }
  *weights = input.flat<double>().data();
  return absl::OkStatus();
}

absl::Status SquareShape(tensorflow::shape_inference::InferenceContext* context) {
  int num_tasks;
  TF_RETURN_IF_ERROR(context->GetAttr("num_tasks", &num_tasks));
  context->set_output(0, context->Matrix(num_tasks, num_tasks));
  return absl::OkStatus();
}

}  // namespace mtl_keras

// mtl_keras/ops/native.py looks for this text in the file before it loads it: a
// library built for another version, or from other sources, must not even be opened.
extern "C" __attribute__((visibility("default"), used)) const char
    mtl_keras_built_for[] =
        "mtl_keras ops built for TensorFlow " MTL_KERAS_TENSORFLOW_VERSION
        " from sources " MTL_KERAS_SOURCES;

// TaskGramian and CombineTaskGradients: dense gradients.

#include <cmath>
#include <vector>

#include "kernels/gram.h"
#include "tensorflow/binding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace mtl_keras {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Brings the gradients of each variable together, and checks their shapes.
absl::Status ToColumns(const OpInputList& gradients, const Places& places,
                       std::vector<Column>* columns) {
  columns->resize(places.num_variables);
  const Tensor* first = nullptr;
  for (int i = 0; i < gradients.size(); ++i) {
    const Tensor& gradient = gradients[i];
    const int variable = places.variables[i];
    Column& column = (*columns)[variable];
    if (column.rows.empty()) {
      column.size = gradient.NumElements();
      first = &gradient;
    } else if (gradient.shape() != first->shape()) {
      return InvalidArgument("Expected gradients of one shape for variable ",
                             places.names[variable], ": task ", column.tasks[0],
                             " has ", first->shape().DebugString(), ". Received: ",
                             gradient.shape().DebugString(), " for task ",
                             places.tasks[i], ".");
    }
    column.tasks.push_back(places.tasks[i]);
    column.rows.push_back(gradient.data());
    column.dtypes.push_back(DTypeOf(gradient));
  }
  return absl::OkStatus();
}

// Names the first gradient that is not finite, if any.
absl::Status CheckFinite(const std::vector<Column>& columns, const Places& places,
                         const ParallelFor& parallel_for, const double* gramian) {
  bool finite = true;
  for (int i = 0; i < places.num_tasks; ++i) {
    finite = finite && std::isfinite(gramian[i * (places.num_tasks + 1)]);
  }
  if (finite) return absl::OkStatus();
  for (std::size_t v = 0; v < columns.size(); ++v) {
    const Column& column = columns[v];
    for (std::size_t i = 0; i < column.rows.size(); ++i) {
      const Column alone{column.size, {0}, {column.rows[i]}, {column.dtypes[i]}};
      double square;
      TaskGramian({alone}, 1, parallel_for, &square);
      if (std::isfinite(square)) continue;
      return InvalidArgument("Expected finite gradients with finite squares. "
                             "Received: not so for variable ",
                             places.names[v], ", task ", column.tasks[i], ".");
    }
  }
  return absl::OkStatus();
}

class TaskGramianOp : public Kernel {
 public:
  explicit TaskGramianOp(OpKernelConstruction* context) : Kernel(context) {
    OP_REQUIRES_OK(context, places_.Read(context, context->num_inputs()));
    OP_REQUIRES_OK(context, context->GetAttr("check_finite", &check_finite_));
  }

  void Run(OpKernelContext* context) override {
    OpInputList gradients;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    std::vector<Column> columns;
    OP_REQUIRES_OK(context, ToColumns(gradients, places_, &columns));
    Tensor* gramian = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, TensorShape({places_.num_tasks, places_.num_tasks}),
                                &gramian));
    double* out = gramian->flat<double>().data();
    const ParallelFor parallel_for = OnThreadsOf(context);
    TaskGramian(columns, places_.num_tasks, parallel_for, out);
    if (check_finite_) {
      OP_REQUIRES_OK(context, CheckFinite(columns, places_, parallel_for, out));
    }
  }

 private:
  Places places_;
  bool check_finite_;
};

class CombineTaskGradientsOp : public Kernel {
 public:
  explicit CombineTaskGradientsOp(OpKernelConstruction* context) : Kernel(context) {
    OP_REQUIRES_OK(context, places_.Read(context, context->num_inputs() - 1));
    OP_REQUIRES_OK(context,
                   CheckCombination(context, places_, context->num_outputs()));
  }

  void Run(OpKernelContext* context) override {
    const double* weights = nullptr;
    OP_REQUIRES_OK(context, ReadWeights(context, places_, &weights));
    OpInputList gradients;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    std::vector<Column> columns;
    OP_REQUIRES_OK(context, ToColumns(gradients, places_, &columns));
    std::vector<void*> outs(columns.size());
    for (int i = 0; i < gradients.size(); ++i) {
      const int variable = places_.variables[i];
      if (i > 0 && places_.variables[i - 1] == variable) continue;
      // The sum takes the place of the variable's first gradient where nobody else
      // reads it any more.
      Tensor* out = nullptr;
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output(
                                  {i + 1}, variable, gradients[i].shape(), &out));
      outs[variable] = out->data();
    }
    CombineTaskGradients(columns, weights, OnThreadsOf(context), outs);
  }

 private:
  Places places_;
};

absl::Status CombineShapes(InferenceContext* context) {
  std::vector<int> variables;
  TF_RETURN_IF_ERROR(context->GetAttr("variables", &variables));
  std::vector<ShapeHandle> gradients, outputs(context->num_outputs());
  TF_RETURN_IF_ERROR(context->input("gradients", &gradients));
  for (auto& output : outputs) output = context->UnknownShape();
  // Lists of wrong lengths are reported when the kernel is made.
  for (std::size_t i = 0; i < gradients.size() && i < variables.size(); ++i) {
    if (variables[i] < 0 || variables[i] >= context->num_outputs()) continue;
    ShapeHandle& output = outputs[variables[i]];
    TF_RETURN_IF_ERROR(context->Merge(output, gradients[i], &output));
  }
  for (int v = 0; v < context->num_outputs(); ++v) context->set_output(v, outputs[v]);
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("MtlKeras>TaskGramian")
    .Input("gradients: Tin")
    .Output("gramian: double")
    .Attr("Tin: list({half, bfloat16, float, double}) >= 1")
    .Attr("num_tasks: int >= 1")
    .Attr("tasks: list(int)")
    .Attr("variables: list(int)")
    .Attr("names: list(int)")
    .Attr("check_finite: bool = false")
    .SetShapeFn(SquareShape)
    .Doc("Inner products of the dense gradients of all tasks, added up in float64.");

REGISTER_OP("MtlKeras>CombineTaskGradients")
    .Input("weights: double")
    .Input("gradients: Tin")
    .Output("combined: Tout")
    .Attr("Tin: list({half, bfloat16, float, double}) >= 1")
    .Attr("Tout: list({half, bfloat16, float, double}) >= 1")
    .Attr("num_tasks: int >= 1")
    .Attr("tasks: list(int)")
    .Attr("variables: list(int)")
    .Attr("names: list(int)")
    .SetShapeFn(CombineShapes)
    .Doc("Weighted sums of the dense gradients of all tasks, per variable.");

REGISTER_KERNEL_BUILDER(Name("MtlKeras>TaskGramian").Device(tensorflow::DEVICE_CPU),
                        TaskGramianOp);
REGISTER_KERNEL_BUILDER(
    Name("MtlKeras>CombineTaskGradients").Device(tensorflow::DEVICE_CPU),
    CombineTaskGradientsOp);

}  // namespace mtl_keras

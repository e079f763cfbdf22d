// SparseTaskGramian and CombineSparseTaskGradients: tf.IndexedSlices.

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/sparse.h"
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

struct SparseColumn {
  std::vector<SparseGradient> gradients;
  TensorShape row_shape;
  int64_t width = 0;
};

// Brings the gradients of each variable together, and checks their shapes.
absl::Status ToColumns(const OpInputList& values, const OpInputList& indices,
                       const Places& places, std::vector<SparseColumn>* columns) {
  columns->resize(places.num_variables);
  for (int i = 0; i < values.size(); ++i) {
    const int name = places.names[places.variables[i]];
    const Tensor& rows = values[i];
    const Tensor& ids = indices[i];
    if (rows.dims() < 1 || ids.dims() != 1 || rows.dim_size(0) != ids.dim_size(0)) {
      return InvalidArgument(
          "Expected one row of values per index for variable ", name, ", task ",
          places.tasks[i], ". Received: values of shape ", rows.shape().DebugString(),
          " and indices of shape ", ids.shape().DebugString(), ".");
    }
    SparseColumn& column = (*columns)[places.variables[i]];
    TensorShape row_shape = rows.shape();
    row_shape.RemoveDim(0);
    if (column.gradients.empty()) {
      column.row_shape = row_shape;
      column.width = row_shape.num_elements();
    } else if (row_shape != column.row_shape) {
      return InvalidArgument("Expected rows of one shape for variable ", name,
                             ": task ", column.gradients[0].task, " has ",
                             column.row_shape.DebugString(), ". Received: ",
                             row_shape.DebugString(), " for task ", places.tasks[i],
                             ".");
    }
    column.gradients.push_back({places.tasks[i], rows.data(), DTypeOf(rows), ids.data(),
                                ids.dtype() == tensorflow::DT_INT64, ids.dim_size(0)});
  }
  for (int v = 0; v < places.num_variables; ++v) {
    int64_t total = 0;
    for (const SparseGradient& gradient : (*columns)[v].gradients) {
      total += gradient.count;
    }
    if (total > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("Expected at most 2^31 - 1 indices for variable ",
                             places.names[v], ". Received: ", total, ".");
    }
  }
  return absl::OkStatus();
}

class SparseTaskGramianOp : public Kernel {
 public:
  explicit SparseTaskGramianOp(OpKernelConstruction* context) : Kernel(context) {
    OP_REQUIRES_OK(context, places_.Read(context, context->num_inputs() / 2));
    OP_REQUIRES_OK(context, context->GetAttr("check_finite", &check_finite_));
  }

  void Run(OpKernelContext* context) override {
    OpInputList values, indices;
    OP_REQUIRES_OK(context, context->input_list("values", &values));
    OP_REQUIRES_OK(context, context->input_list("indices", &indices));
    std::vector<SparseColumn> columns;
    OP_REQUIRES_OK(context, ToColumns(values, indices, places_, &columns));
    Tensor* gramian = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, TensorShape({places_.num_tasks, places_.num_tasks}),
                                &gramian));
    gramian->flat<double>().setZero();
    double* out = gramian->flat<double>().data();
    const ParallelFor parallel_for = OnThreadsOf(context);
    for (int v = 0; v < places_.num_variables; ++v) {
      AddSparseGramian(columns[v].gradients, columns[v].width, places_.num_tasks,
                       parallel_for, out);
      if (!check_finite_) continue;
      for (const SparseGradient& gradient : columns[v].gradients) {
        OP_REQUIRES(
            context, std::isfinite(out[gradient.task * (places_.num_tasks + 1)]),
            InvalidArgument("Expected finite gradients with finite squares. "
                            "Received: not so for variable ",
                            places_.names[v], ", task ", gradient.task, "."));
      }
    }
  }

 private:
  Places places_;
  bool check_finite_;
};

class CombineSparseTaskGradientsOp : public Kernel {
 public:
  explicit CombineSparseTaskGradientsOp(OpKernelConstruction* context)
      : Kernel(context) {
    const int count = (context->num_inputs() - 1) / 2;
    OP_REQUIRES_OK(context, places_.Read(context, count));
    OP_REQUIRES_OK(context,
                   CheckCombination(context, places_, context->num_outputs() / 2));
  }

  void Run(OpKernelContext* context) override {
    const double* weights = nullptr;
    OP_REQUIRES_OK(context, ReadWeights(context, places_, &weights));
    OpInputList values, indices;
    OP_REQUIRES_OK(context, context->input_list("values", &values));
    OP_REQUIRES_OK(context, context->input_list("indices", &indices));
    std::vector<SparseColumn> columns;
    OP_REQUIRES_OK(context, ToColumns(values, indices, places_, &columns));
    const ParallelFor parallel_for = OnThreadsOf(context);
    for (int v = 0; v < places_.num_variables; ++v) {
      const SparseColumn& column = columns[v];
      const SparseGroups groups(column.gradients);
      TensorShape shape = column.row_shape;
      shape.InsertDim(0, groups.count());
      Tensor* rows = nullptr;
      Tensor* ids = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(v, shape, &rows));
      OP_REQUIRES_OK(context,
                     context->allocate_output(places_.num_variables + v,
                                              TensorShape({groups.count()}), &ids));
      if (ids->dtype() == tensorflow::DT_INT64) {
        auto out = ids->flat<int64_t>();
        for (int64_t g = 0; g < groups.count(); ++g) out(g) = groups.id(g);
      } else {
        auto out = ids->flat<int32_t>();
        for (int64_t g = 0; g < groups.count(); ++g) {
          out(g) = static_cast<int32_t>(groups.id(g));
        }
      }
      CombineSparse(column.gradients, groups, column.width, weights, parallel_for,
                    rows->data());
    }
  }

 private:
  Places places_;
};

absl::Status CombineSparseShapes(InferenceContext* context) {
  std::vector<int> variables;
  TF_RETURN_IF_ERROR(context->GetAttr("variables", &variables));
  const int count = context->num_outputs() / 2;
  std::vector<ShapeHandle> values, outputs(count, context->UnknownShape());
  TF_RETURN_IF_ERROR(context->input("values", &values));
  for (std::size_t i = 0; i < values.size() && i < variables.size(); ++i) {
    if (variables[i] < 0 || variables[i] >= count || !context->RankKnown(values[i])) {
      continue;
    }
    ShapeHandle rows;
    TF_RETURN_IF_ERROR(context->WithRankAtLeast(values[i], 1, &rows));
    TF_RETURN_IF_ERROR(
        context->ReplaceDim(rows, 0, context->UnknownDim(), &outputs[variables[i]]));
  }
  for (int v = 0; v < count; ++v) {
    context->set_output(v, outputs[v]);
    context->set_output(count + v, context->Vector(context->UnknownDim()));
  }
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("MtlKeras>SparseTaskGramian")
    .Input("values: Tin")
    .Input("indices: N * Tindices")
    .Output("gramian: double")
    .Attr("Tin: list({half, bfloat16, float, double}) >= 1")
    .Attr("Tindices: {int32, int64}")
    .Attr("N: int >= 1")
    .Attr("num_tasks: int >= 1")
    .Attr("tasks: list(int)")
    .Attr("variables: list(int)")
    .Attr("names: list(int)")
    .Attr("check_finite: bool = false")
    .SetShapeFn(SquareShape)
    .Doc("Inner products of the sparse gradients of all tasks, added up in float64.");

REGISTER_OP("MtlKeras>CombineSparseTaskGradients")
    .Input("weights: double")
    .Input("values: Tin")
    .Input("indices: N * Tindices")
    .Output("combined: Tout")
    .Output("ids: V * Tindices")
    .Attr("Tin: list({half, bfloat16, float, double}) >= 1")
    .Attr("Tout: list({half, bfloat16, float, double}) >= 1")
    .Attr("Tindices: {int32, int64}")
    .Attr("N: int >= 1")
    .Attr("V: int >= 1")
    .Attr("num_tasks: int >= 1")
    .Attr("tasks: list(int)")
    .Attr("variables: list(int)")
    .Attr("names: list(int)")
    .SetShapeFn(CombineSparseShapes)
    .Doc("Weighted sums of the sparse gradients of all tasks, with each id once.");

REGISTER_KERNEL_BUILDER(
    Name("MtlKeras>SparseTaskGramian").Device(tensorflow::DEVICE_CPU),
    SparseTaskGramianOp);
REGISTER_KERNEL_BUILDER(
    Name("MtlKeras>CombineSparseTaskGradients").Device(tensorflow::DEVICE_CPU),
    CombineSparseTaskGradientsOp);

}  // namespace mtl_keras

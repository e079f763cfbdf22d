// Solvers: Gram matrix to weights. Gram matrices that are not finite are no error
// but give the fallback, as mixed precision must see them through.

#include <string>
#include <vector>

#include "solvers/calls.h"
#include "tensorflow/binding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace mtl_keras {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

class SolverOp : public Kernel {
 public:
  explicit SolverOp(OpKernelConstruction* context)
      : Kernel(context), solver_(SolverOf(context)) {}

  void Run(OpKernelContext* context) override {
    std::vector<Array> inputs;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const Tensor& input = context->input(i);
      const auto dims = input.shape().dim_sizes();
      inputs.push_back({input.data(), Dims(dims.begin(), dims.end())});
    }
    const std::string wrong = solver_.Check(inputs);
    OP_REQUIRES(context, wrong.empty(), InvalidArgument(wrong));
    std::vector<void*> outputs;
    for (int i = 0; i < context->num_outputs(); ++i) {
      Tensor* output = nullptr;
      const TensorShape shape(solver_.OutputDims(i, inputs));
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &output));
      outputs.push_back(output->data());
    }
    solver_.run(inputs, outputs);
  }

 private:
  const Solver& solver_;
};

absl::Status WeightsShape(InferenceContext* context) {
  ShapeHandle gramian;
  DimensionHandle size;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 2, &gramian));
  TF_RETURN_IF_ERROR(
      context->Merge(context->Dim(gramian, 0), context->Dim(gramian, 1), &size));
  context->set_output(0, context->Vector(size));
  context->set_output(context->num_outputs() - 1, context->Scalar());
  return absl::OkStatus();
}

absl::Status DualConeShape(InferenceContext* context) {
  TF_RETURN_IF_ERROR(WeightsShape(context));
  context->set_output(0, context->input(1));
  return absl::OkStatus();
}

absl::Status GradVacShape(InferenceContext* context) {
  TF_RETURN_IF_ERROR(WeightsShape(context));
  context->set_output(1, context->input(1));
  return absl::OkStatus();
}

absl::Status ProgramShape(InferenceContext* context) {
  TF_RETURN_IF_ERROR(DualConeShape(context));
  ShapeHandle rows, solved;
  TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(1), 1, &rows));
  TF_RETURN_IF_ERROR(context->Subshape(rows, 0, -1, &solved));
  context->set_output(1, solved);
  return absl::OkStatus();
}

}  // namespace

const Solver& SolverOf(const OpKernelConstruction* context) {
  // The op is called "MtlKeras>", and then as the solver.
  const std::string& op = context->def().op();
  return *FindSolver(op.substr(op.find('>') + 1));
}

REGISTER_OP("MtlKeras>MinNorm")
    .Input("gramian: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("min w' G w over the simplex (MGDA).");

REGISTER_OP("MtlKeras>DualCone")
    .Input("gramian: double")
    .Input("lower: double")
    .Input("precision: double")
    .Output("raised: double")
    .Output("converged: bool")
    .SetShapeFn(DualConeShape)
    .Doc("min v' G v over v >= lower.");

REGISTER_OP("MtlKeras>UpGrad")
    .Input("gramian: double")
    .Input("preference: double")
    .Input("reg_eps: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Sum of the projections of all gradients onto their dual cone.");

REGISTER_OP("MtlKeras>DualProj")
    .Input("gramian: double")
    .Input("preference: double")
    .Input("reg_eps: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Projection of the mean gradient onto the dual cone.");

REGISTER_OP("MtlKeras>CaGrad")
    .Input("gramian: double")
    .Input("c: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("The best worst-case decrease in a ball around the mean gradient.");

REGISTER_OP("MtlKeras>PowerRoot")
    .Input("gramian: double")
    .Input("alpha: double")
    .Input("shares: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("The root of G w = s w^(-1/alpha).");

REGISTER_OP("MtlKeras>PcGrad")
    .Input("gramian: double")
    .Input("orders: int32")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Removes conflicting components task by task and adds.");

REGISTER_OP("MtlKeras>GradVac")
    .Input("gramian: double")
    .Input("goals: double")
    .Input("orders: int32")
    .Input("beta: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("moved: double")
    .Output("converged: bool")
    .SetShapeFn(GradVacShape)
    .Doc("Aligns gradients up to the moving averages of their cosines.");

REGISTER_OP("MtlKeras>ImtlG")
    .Input("gramian: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Equal projections of the update on all unit gradients.");

REGISTER_OP("MtlKeras>Config")
    .Input("gramian: double")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Equal cosines with all gradients.");

REGISTER_OP("MtlKeras>Aligned")
    .Input("gramian: double")
    .Input("scale_mode: int32")
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("Principal components of the gradients of equal length.");

REGISTER_OP("MtlKeras>NonnegativeQp")
    .Input("matrix: double")
    .Input("linear: double")
    .Input("noise: double")
    .Output("solution: double")
    .Output("solved: bool")
    .SetShapeFn(ProgramShape)
    .Doc("min x' A x / 2 - b' x over x >= 0.");

#define MTL_KERAS_REGISTER_SOLVER(NAME) \
  REGISTER_KERNEL_BUILDER(              \
      Name("MtlKeras>" NAME).Device(tensorflow::DEVICE_CPU), SolverOp);
MTL_KERAS_FOR_EACH_SOLVER(MTL_KERAS_REGISTER_SOLVER)
#undef MTL_KERAS_REGISTER_SOLVER

}  // namespace mtl_keras

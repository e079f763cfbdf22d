// MixExperts and its gradient.

#include "kernels/mixture.h"
#include "tensorflow/binding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace mtl_keras {
namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Reads the sizes off inputs 0 and 1, and checks that they fit each other.
absl::Status ReadShape(OpKernelContext* context, MixtureShape* shape,
                       TensorShape* mixture) {
  const TensorShape& weights = context->input(0).shape();
  const TensorShape& values = context->input(1).shape();
  const int rank = values.dims();
  if (weights.dims() != 2 || rank < 3 || values.dim_size(0) != weights.dim_size(0) ||
      values.dim_size(rank - 2) != weights.dim_size(1) || weights.dim_size(1) < 1) {
    return InvalidArgument("Expected weights [batch, experts] and values [batch, ..., "
                           "experts, width] with at least one expert. Received: ",
                           weights.DebugString(), " and ", values.DebugString(), ".");
  }
  *shape = {weights.dim_size(0), 1, weights.dim_size(1), values.dim_size(rank - 1)};
  *mixture = values;
  mixture->RemoveDim(rank - 2);
  for (int i = 1; i < rank - 2; ++i) shape->positions *= values.dim_size(i);
  return absl::OkStatus();
}

class MixExpertsOp : public Kernel {
 public:
  using Kernel::Kernel;

  void Run(OpKernelContext* context) override {
    MixtureShape shape;
    TensorShape mixture;
    OP_REQUIRES_OK(context, ReadShape(context, &shape, &mixture));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, mixture, &out));
    MixExperts(shape, context->input(0).flat<float>().data(),
               context->input(1).flat<float>().data(), OnThreadsOf(context),
               out->flat<float>().data());
  }
};

class MixExpertsGradientOp : public Kernel {
 public:
  using Kernel::Kernel;

  void Run(OpKernelContext* context) override {
    MixtureShape shape;
    TensorShape mixture;
    OP_REQUIRES_OK(context, ReadShape(context, &shape, &mixture));
    const Tensor& gradient = context->input(2);
    OP_REQUIRES(context, gradient.shape() == mixture,
                InvalidArgument("Expected a gradient of shape ", mixture.DebugString(),
                                ". Received: ", gradient.shape().DebugString(), "."));
    Tensor* weights = nullptr;
    Tensor* values = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output(0, context->input(0).shape(), &weights));
    OP_REQUIRES_OK(context,
                   context->allocate_output(1, context->input(1).shape(), &values));
    MixExpertsGradient(shape, context->input(0).flat<float>().data(),
                       context->input(1).flat<float>().data(),
                       gradient.flat<float>().data(), OnThreadsOf(context),
                       weights->flat<float>().data(), values->flat<float>().data());
  }
};

absl::Status MixtureOutputShape(InferenceContext* context) {
  ShapeHandle values, before, after, mixture;
  TF_RETURN_IF_ERROR(context->WithRankAtLeast(context->input(1), 3, &values));
  TF_RETURN_IF_ERROR(context->Subshape(values, 0, -2, &before));
  TF_RETURN_IF_ERROR(context->Subshape(values, -1, &after));
  TF_RETURN_IF_ERROR(context->Concatenate(before, after, &mixture));
  context->set_output(0, mixture);
  return absl::OkStatus();
}

absl::Status GradientShapes(InferenceContext* context) {
  context->set_output(0, context->input(0));
  context->set_output(1, context->input(1));
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("MtlKeras>MixExperts")
    .Input("weights: float")
    .Input("values: float")
    .Output("mixture: float")
    .SetShapeFn(MixtureOutputShape)
    .Doc("Sums of what experts gave, weighted by sample.");

REGISTER_OP("MtlKeras>MixExpertsGradient")
    .Input("weights: float")
    .Input("values: float")
    .Input("gradient: float")
    .Output("weights_gradient: float")
    .Output("values_gradient: float")
    .SetShapeFn(GradientShapes)
    .Doc("Gradients of MixExperts.");

REGISTER_KERNEL_BUILDER(Name("MtlKeras>MixExperts").Device(tensorflow::DEVICE_CPU),
                        MixExpertsOp);
REGISTER_KERNEL_BUILDER(
    Name("MtlKeras>MixExpertsGradient").Device(tensorflow::DEVICE_CPU),
    MixExpertsGradientOp);

}  // namespace mtl_keras

// Solvers: Gram matrix to weights. Gram matrices that are not finite are no error
// but give the fallback, as mixed precision must see them through.

#include <cstdint>
#include <limits>

#include "solvers/conic.h"
#include "solvers/projection.h"
#include "solvers/quadratic.h"
#include "solvers/root.h"
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

// Whether an input has the right shape; an error is set where it has not.
bool Check(OpKernelContext* context, const char* what, int index,
           const TensorShape& expected) {
  const TensorShape& shape = context->input(index).shape();
  if (shape == expected) return true;
  context->CtxFailure(InvalidArgument("Expected ", what, " of shape ",
                                      expected.DebugString(), ". Received: shape ",
                                      shape.DebugString(), "."));
  return false;
}

// An op whose first input is a Gram matrix, whose first output are weights and whose
// last output tells whether they are the solution.
class SolverOp : public Kernel {
 public:
  explicit SolverOp(OpKernelConstruction* context) : Kernel(context) {}

  void Run(OpKernelContext* context) override {
    const Tensor& gramian = context->input(0);
    OP_REQUIRES(context,
                gramian.dims() == 2 && gramian.dim_size(0) == gramian.dim_size(1) &&
                    gramian.dim_size(0) > 0 && gramian.dim_size(0) < 32768,
                InvalidArgument("Expected a Gram matrix of shape [tasks, tasks]. "
                                "Received: shape ",
                                gramian.shape().DebugString(), "."));
    const int size = static_cast<int>(gramian.dim_size(0));
    Tensor* converged = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(context->num_outputs() - 1,
                                                     TensorShape({}), &converged));
    converged->scalar<bool>()() =
        Solve(context, gramian.flat<double>().data(), size);
  }

 protected:
  // Errors are set in `context`.
  virtual bool Solve(OpKernelContext* context, const double* gramian, int size) = 0;

  // The precision of the gradients, the last input of the solvers that decide by it.
  static bool ReadPrecision(OpKernelContext* context, double* precision) {
    const int index = context->num_inputs() - 1;
    if (!Check(context, "a precision", index, TensorShape({}))) return false;
    *precision = context->input(index).scalar<double>()();
    if (*precision > 0.0 && *precision < 1.0) return true;
    context->CtxFailure(InvalidArgument("Expected a precision in (0, 1). Received: ",
                                        *precision, "."));
    return false;
  }

  static double* AllocateWeights(OpKernelContext* context, const TensorShape& shape) {
    Tensor* weights = nullptr;
    const absl::Status status = context->allocate_output(0, shape, &weights);
    if (!status.ok()) {
      context->CtxFailure(status);
      return nullptr;
    }
    return weights->flat<double>().data();
  }
};

class MinNormOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    double* weights = AllocateWeights(context, TensorShape({size}));
    return weights != nullptr && MinNorm(gramian, size, weights);
  }
};

class DualConeOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    const Tensor& lower = context->input(1);
    if (lower.dims() < 1 || lower.dims() > 2 ||
        lower.dim_size(lower.dims() - 1) != size ||
        lower.NumElements() > std::numeric_limits<int32_t>::max()) {
      context->CtxFailure(InvalidArgument(
          "Expected lower bounds of shape [", size, "] or [batch, ", size,
          "]. Received: shape ", lower.shape().DebugString(), "."));
      return false;
    }
    double precision = 0.0;
    if (!ReadPrecision(context, &precision)) return false;
    double* out = AllocateWeights(context, lower.shape());
    const int batch = static_cast<int>(lower.NumElements() / size);
    return out != nullptr &&
           DualCone(gramian, size, lower.flat<double>().data(), batch, precision, out);
  }
};

// UPGrad where `kEach`, DualProj otherwise.
template <bool kEach>
class ConeProjectionOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    // An empty preference stands for the same for every task.
    const Tensor& preference = context->input(1);
    const double* u = nullptr;
    if (preference.NumElements() > 0) {
      if (!Check(context, "a preference", 1, TensorShape({size}))) return false;
      u = preference.flat<double>().data();
    }
    if (!Check(context, "reg_eps", 2, TensorShape({}))) return false;
    const double reg_eps = context->input(2).scalar<double>()();
    double precision = 0.0;
    if (!ReadPrecision(context, &precision)) return false;
    double* weights = AllocateWeights(context, TensorShape({size}));
    if (weights == nullptr) return false;
    return kEach ? UpGrad(gramian, size, u, reg_eps, precision, weights)
                 : DualProj(gramian, size, u, reg_eps, precision, weights);
  }
};

class CaGradOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    if (!Check(context, "c", 1, TensorShape({}))) return false;
    const double c = context->input(1).scalar<double>()();
    if (!(c >= 0.0)) {
      context->CtxFailure(InvalidArgument("Expected c >= 0. Received: c=", c, "."));
      return false;
    }
    double precision = 0.0;
    if (!ReadPrecision(context, &precision)) return false;
    double* weights = AllocateWeights(context, TensorShape({size}));
    return weights != nullptr && CaGrad(gramian, size, c, precision, weights);
  }
};

class PowerRootOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    if (!Check(context, "alpha", 1, TensorShape({}))) return false;
    const double alpha = context->input(1).scalar<double>()();
    if (!(alpha > 0.0)) {
      context->CtxFailure(
          InvalidArgument("Expected alpha > 0. Received: alpha=", alpha, "."));
      return false;
    }
    double precision = 0.0;
    if (!ReadPrecision(context, &precision)) return false;
    double* weights = AllocateWeights(context, TensorShape({size}));
    return weights != nullptr && PowerRoot(gramian, size, alpha, precision, weights);
  }
};

// Whether input `index` holds the order in which each task meets the others.
bool CheckOrders(OpKernelContext* context, int index, int size) {
  if (!Check(context, "orders", index, TensorShape({size, size - 1}))) return false;
  const auto orders = context->input(index).flat<int32_t>();
  for (int64_t i = 0; i < orders.size(); ++i) {
    if (orders(i) >= 0 && orders(i) < size) continue;
    context->CtxFailure(InvalidArgument("Expected orders in [0, ", size,
                                        "). Received: ", orders(i), " for task ",
                                        i / (size - 1), "."));
    return false;
  }
  return true;
}

class PcGradOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    if (!CheckOrders(context, 1, size)) return false;
    double* weights = AllocateWeights(context, TensorShape({size}));
    return weights != nullptr &&
           PcGrad(gramian, size, context->input(1).flat<int32_t>().data(), weights);
  }
};

class GradVacOp : public SolverOp {
 public:
  using SolverOp::SolverOp;

 protected:
  bool Solve(OpKernelContext* context, const double* gramian, int size) override {
    const Tensor& goals = context->input(1);
    if (!Check(context, "averages", 1, TensorShape({size, size}))) return false;
    if (!CheckOrders(context, 2, size)) return false;
    if (!Check(context, "beta", 3, TensorShape({}))) return false;
    double precision = 0.0;
    if (!ReadPrecision(context, &precision)) return false;
    double* weights = AllocateWeights(context, TensorShape({size}));
    if (weights == nullptr) return false;
    Tensor* moved = nullptr;
    const absl::Status status = context->allocate_output(1, goals.shape(), &moved);
    if (!status.ok()) {
      context->CtxFailure(status);
      return false;
    }
    moved->flat<double>() = goals.flat<double>();
    return GradVac(gramian, size, context->input(2).flat<int32_t>().data(),
                   context->input(3).scalar<double>()(), precision,
                   moved->flat<double>().data(), weights);
  }
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

}  // namespace

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
    .Input("precision: double")
    .Output("weights: double")
    .Output("converged: bool")
    .SetShapeFn(WeightsShape)
    .Doc("The root of G w = w^(-1/alpha).");

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

#define MTL_KERAS_REGISTER_SOLVER(NAME, CLASS)                               \
  REGISTER_KERNEL_BUILDER(Name("MtlKeras>" NAME).Device(tensorflow::DEVICE_CPU), \
                          CLASS)
MTL_KERAS_REGISTER_SOLVER("MinNorm", MinNormOp);
MTL_KERAS_REGISTER_SOLVER("DualCone", DualConeOp);
MTL_KERAS_REGISTER_SOLVER("UpGrad", ConeProjectionOp<true>);
MTL_KERAS_REGISTER_SOLVER("DualProj", ConeProjectionOp<false>);
MTL_KERAS_REGISTER_SOLVER("CaGrad", CaGradOp);
MTL_KERAS_REGISTER_SOLVER("PowerRoot", PowerRootOp);
MTL_KERAS_REGISTER_SOLVER("PcGrad", PcGradOp);
MTL_KERAS_REGISTER_SOLVER("GradVac", GradVacOp);
#undef MTL_KERAS_REGISTER_SOLVER

}  // namespace mtl_keras

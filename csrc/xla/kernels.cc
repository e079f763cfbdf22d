// What XLA compiles the solvers' ops to: the custom calls of handlers.cc.

// These two headers include others that TensorFlow's package lacks. Nothing here needs
// more of them than this name.
#define XLA_PRINTER_H_
#define TENSORFLOW_TSL_PLATFORM_FINGERPRINT_H_
namespace xla {
class Printer;
}

#include <string>
#include <vector>

#include "solvers/calls.h"
#include "tensorflow/binding.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

namespace mtl_keras {
namespace {

xla::Shape RowMajor(Kind kind, const Dims& dims) {
  const xla::PrimitiveType types[] = {xla::F64, xla::S32, xla::PRED};
  return xla::ShapeUtil::MakeShapeWithDescendingLayout(
      types[static_cast<int>(TypeOf(kind))], dims);
}

class XlaSolverOp : public tensorflow::XlaOpKernel {
 public:
  explicit XlaSolverOp(tensorflow::OpKernelConstruction* context)
      : XlaOpKernel(context), solver_(SolverOf(context)) {}

  void Compile(tensorflow::XlaOpKernelContext* context) override {
    std::vector<Array> inputs;
    std::vector<xla::XlaOp> operands;
    std::vector<xla::Shape> input_shapes, output_shapes;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto dims = context->InputShape(i).dim_sizes();
      inputs.push_back({nullptr, Dims(dims.begin(), dims.end())});
      operands.push_back(context->Input(i));
      input_shapes.push_back(RowMajor(solver_.inputs[i].kind, inputs.back().dims));
    }
    const std::string wrong = solver_.Check(inputs);
    OP_REQUIRES(context, wrong.empty(), InvalidArgument(wrong));
    for (std::size_t i = 0; i < solver_.outputs.size(); ++i) {
      output_shapes.push_back(
          RowMajor(solver_.outputs[i], solver_.OutputDims(i, inputs)));
    }
    const xla::XlaOp call = xla::CustomCallWithLayout(
        context->builder(), std::string("mtl_keras_") + solver_.name, operands,
        xla::ShapeUtil::MakeTupleShape(output_shapes), input_shapes, /*opaque=*/"",
        /*has_side_effect=*/false, /*output_operand_aliasing=*/{}, /*literal=*/nullptr,
        xla::CustomCallSchedule::SCHEDULE_NONE,
        xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (std::size_t i = 0; i < solver_.outputs.size(); ++i) {
      context->SetOutput(static_cast<int>(i), xla::GetTupleElement(call, i));
    }
  }

 private:
  const Solver& solver_;
};

}  // namespace

// Registered as kernels of XLA's two devices, not by REGISTER_XLA_OP: TensorFlow takes
// over what the latter has registered once only, before it first looks for clusters.
#define MTL_KERAS_REGISTER_SOLVER(NAME)                                           \
  REGISTER_KERNEL_BUILDER(                                                        \
      Name("MtlKeras>" NAME).Device(tensorflow::DEVICE_CPU_XLA_JIT), XlaSolverOp); \
  REGISTER_KERNEL_BUILDER(                                                        \
      Name("MtlKeras>" NAME).Device(tensorflow::DEVICE_GPU_XLA_JIT), XlaSolverOp);
MTL_KERAS_FOR_EACH_SOLVER(MTL_KERAS_REGISTER_SOLVER)
#undef MTL_KERAS_REGISTER_SOLVER

}  // namespace mtl_keras

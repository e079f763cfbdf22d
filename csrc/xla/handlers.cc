// The solvers as custom calls of XLA, on the host and on CUDA devices, in its typed
// foreign function interface. Nothing here needs TensorFlow but `XLA_FFI_GetApi`.

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "solvers/calls.h"
#include "solvers/device.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

extern "C" const XLA_FFI_Api* XLA_FFI_GetApi();

namespace mtl_keras {
namespace {

namespace ffi = xla::ffi;

ffi::DataType DataTypeOf(Kind kind) {
  switch (TypeOf(kind)) {
    case Type::kInt32:
      return ffi::DataType::S32;
    case Type::kBool:
      return ffi::DataType::PRED;
    default:
      return ffi::DataType::F64;
  }
}

ffi::Error Wrong(std::string message) { return ffi::Error::InvalidArgument(message); }

// The buffers of a call, which must be as kernels.cc has compiled them.
ffi::Error Arrays(const Solver& solver, const ffi::RemainingArgs& args,
                  const ffi::RemainingRets& rets, std::vector<Array>* inputs,
                  std::vector<void*>* outputs) {
  if (args.size() != solver.inputs.size() || rets.size() != solver.outputs.size()) {
    return Wrong(std::string("Expected other numbers of buffers for ") + solver.name);
  }
  for (std::size_t i = 0; i < args.size(); ++i) {
    const auto arg = args.get<ffi::AnyBuffer>(i);
    if (arg.has_error()) return arg.error();
    if (arg->element_type() != DataTypeOf(solver.inputs[i].kind)) {
      return Wrong(std::string("Expected another dtype for ") + solver.inputs[i].name);
    }
    const auto dims = arg->dimensions();
    inputs->push_back({arg->untyped_data(), Dims(dims.begin(), dims.end())});
  }
  for (std::size_t i = 0; i < rets.size(); ++i) {
    auto ret = rets.get<ffi::AnyBuffer>(i);
    if (ret.has_error()) return ret.error();
    outputs->push_back((*ret)->untyped_data());
  }
  return ffi::Error::Success();
}

std::string RunOnHost(const Solver& solver, const std::vector<Array>& inputs,
                      const std::vector<void*>& outputs) {
  std::string wrong = solver.Check(inputs);
  if (wrong.empty()) solver.run(inputs, outputs);
  return wrong;
}

// Runs `run(solver, inputs, outputs)`. An exception that reached XLA would end the
// process.
template <typename Run>
ffi::Error Call(const Solver& solver, const ffi::RemainingArgs& args,
                const ffi::RemainingRets& rets, const Run& run) {
  try {
    std::vector<Array> inputs;
    std::vector<void*> outputs;
    ffi::Error error = Arrays(solver, args, rets, &inputs, &outputs);
    if (error.failure()) return error;
    const std::string wrong = run(solver, inputs, outputs);
    return wrong.empty() ? ffi::Error::Success() : Wrong(wrong);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      std::string("Not enough memory for the scratch space of ") +
                          solver.name + ".");
  } catch (const std::exception& exception) {
    return ffi::Error::Internal(exception.what());
  }
}

// One handler for each solver, as XLA tells a handler nothing of the call's name.
template <int kIndex>
struct Handlers {
  static const char* name;

  static const Solver& solver() {
    static const Solver* found = FindSolver(name);
    return *found;
  }

  static ffi::Error Host(ffi::RemainingArgs args, ffi::RemainingRets rets) {
    return Call(solver(), args, rets, RunOnHost);
  }

  static ffi::Error Cuda(void* stream, ffi::RemainingArgs args, ffi::RemainingRets rets) {
    return Call(solver(), args, rets,
                [stream](const Solver& called, const std::vector<Array>& inputs,
                         const std::vector<void*>& outputs) {
                  return RunOnCuda(called, inputs, outputs, stream);
                });
  }

  static XLA_FFI_Error* HostCall(XLA_FFI_CallFrame* frame) {
    static const auto* handler =
        ffi::Ffi::Bind().RemainingArgs().RemainingRets().To(Host).release();
    return handler->Call(frame);
  }

  static XLA_FFI_Error* CudaCall(XLA_FFI_CallFrame* frame) {
    static const auto* handler = ffi::Ffi::Bind()
                                     .Ctx<ffi::PlatformStream<void*>>()
                                     .RemainingArgs()
                                     .RemainingRets()
                                     .To(Cuda)
                                     .release();
    return handler->Call(frame);
  }

  static bool Register(const char* solver_name) {
    name = solver_name;
    const std::string target = std::string("mtl_keras_") + solver_name;
    const XLA_FFI_Api* api = XLA_FFI_GetApi();
    ffi::Ffi::RegisterStaticHandler(api, target, "Host", HostCall);
    ffi::Ffi::RegisterStaticHandler(api, target, "CUDA", CudaCall);
    return true;
  }
};

template <int kIndex>
const char* Handlers<kIndex>::name = nullptr;

#define MTL_KERAS_HANDLERS(NAME) Handlers<__COUNTER__>::Register(NAME),
[[maybe_unused]] const bool registered[] = {
    MTL_KERAS_FOR_EACH_SOLVER(MTL_KERAS_HANDLERS)};
#undef MTL_KERAS_HANDLERS

}  // namespace
}  // namespace mtl_keras

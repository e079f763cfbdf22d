// XLA's interface as csrc/xla/handlers.cc finds it without TensorFlow: it keeps the
// handlers by name and platform, for JAX to register.

#include <map>
#include <string>

#include "xla/ffi/api/c_api.h"

namespace {

std::map<std::string, XLA_FFI_Handler*>& Handlers() {
  static auto* handlers = new std::map<std::string, XLA_FFI_Handler*>();
  return *handlers;
}

std::string Text(const XLA_FFI_ByteSpan& span) { return std::string(span.ptr, span.len); }

XLA_FFI_Error* Keep(XLA_FFI_Handler_Register_Args* args) {
  Handlers()[Text(args->name) + "@" + Text(args->platform)] = args->bundle.execute;
  return nullptr;
}

}  // namespace

extern "C" const XLA_FFI_Api* XLA_FFI_GetApi() {
  static XLA_FFI_Api api = {};
  api.XLA_FFI_Handler_Register = Keep;
  return &api;
}

// Null where there is none of this name, "TARGET@PLATFORM".
extern "C" void* mtl_keras_handler(const char* name) {
  const auto found = Handlers().find(name);
  return found == Handlers().end() ? nullptr : reinterpret_cast<void*>(found->second);
}

#include "solvers/device.h"

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <utility>

namespace mtl_keras {
namespace {

// Of an array on the host; a double's alignment serves all types.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes)
      : bytes_(bytes), data_(new double[bytes / sizeof(double) + 1]) {}

  void* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::unique_ptr<double[]> data_;
};

Buffer BufferOf(Kind kind, int64_t count) {
  return Buffer(static_cast<std::size_t>(count) * SizeOf(TypeOf(kind)));
}

// The part of CUDA's driver that copies take. Its types are ints and pointers.
struct Driver {
  int (*stream_context)(void* stream, void** context);
  int (*push_context)(void* context);
  int (*pop_context)(void** context);
  int (*to_host)(void* host, uint64_t device, std::size_t bytes, void* stream);
  int (*to_device)(uint64_t device, const void* host, std::size_t bytes, void* stream);
  int (*wait)(void* stream);

  // Null where there is none.
  static const Driver* Get() {
    static const Driver* driver = Load();
    return driver;
  }

 private:
  static const Driver* Load() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    auto driver = std::make_unique<Driver>();
    const bool complete =
        Find(library, "cuStreamGetCtx", &driver->stream_context) &&
        Find(library, "cuCtxPushCurrent_v2", &driver->push_context) &&
        Find(library, "cuCtxPopCurrent_v2", &driver->pop_context) &&
        Find(library, "cuMemcpyDtoHAsync_v2", &driver->to_host) &&
        Find(library, "cuMemcpyHtoDAsync_v2", &driver->to_device) &&
        Find(library, "cuStreamSynchronize", &driver->wait);
    return complete ? driver.release() : nullptr;
  }

  template <typename Function>
  static bool Find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    return *function != nullptr;
  }
};

class CudaStream : public Stream {
 public:
  CudaStream(const Driver& driver, void* stream) : driver_(driver), stream_(stream) {}

  std::string ToHost(void* host, const void* device, std::size_t bytes) override {
    return Said(driver_.to_host(host, Address(device), bytes, stream_), "cuMemcpyDtoHAsync");
  }

  std::string ToDevice(void* device, const void* host, std::size_t bytes) override {
    return Said(driver_.to_device(Address(device), host, bytes, stream_),
                "cuMemcpyHtoDAsync");
  }

  std::string Wait() override {
    return Said(driver_.wait(stream_), "cuStreamSynchronize");
  }

  static std::string Said(int code, const char* function) {
    if (code == 0) return "";
    return std::string(function) + " failed with CUresult " + std::to_string(code) + ".";
  }

 private:
  static uint64_t Address(const void* device) {
    return reinterpret_cast<std::uintptr_t>(device);
  }

  const Driver& driver_;
  void* stream_;
};

}  // namespace

std::string RunOnDevice(const Solver& solver, std::vector<Array> inputs,
                        const std::vector<void*>& outputs, Stream* stream) {
  std::string wrong;
  std::vector<Buffer> copies;
  for (std::size_t i = 0; i < inputs.size() && i < solver.inputs.size(); ++i) {
    copies.push_back(BufferOf(solver.inputs[i].kind, inputs[i].count()));
    const Buffer& copy = copies.back();
    if (copy.bytes() > 0) wrong = stream->ToHost(copy.data(), inputs[i].data, copy.bytes());
    if (!wrong.empty()) return wrong;
    inputs[i].data = copy.data();
  }
  wrong = stream->Wait();
  if (wrong.empty()) wrong = solver.Check(inputs);
  if (!wrong.empty()) return wrong;
  std::vector<Buffer> results;
  std::vector<void*> places;
  for (std::size_t i = 0; i < solver.outputs.size(); ++i) {
    const Array output{nullptr, solver.OutputDims(i, inputs)};
    results.push_back(BufferOf(solver.outputs[i], output.count()));
    places.push_back(results.back().data());
  }
  solver.run(inputs, places);
  for (std::size_t i = 0; i < results.size() && wrong.empty(); ++i) {
    if (results[i].bytes() == 0) continue;
    wrong = stream->ToDevice(outputs[i], results[i].data(), results[i].bytes());
  }
  // The buffers must outlive the copies.
  const std::string late = stream->Wait();
  return wrong.empty() ? late : wrong;
}

std::string RunOnCuda(const Solver& solver, std::vector<Array> inputs,
                      const std::vector<void*>& outputs, void* stream) {
  const Driver* driver = Driver::Get();
  if (driver == nullptr) return "Expected CUDA's driver, libcuda.so.1. Received: none.";
  void* context = nullptr;
  std::string wrong =
      CudaStream::Said(driver->stream_context(stream, &context), "cuStreamGetCtx");
  if (wrong.empty()) {
    wrong = CudaStream::Said(driver->push_context(context), "cuCtxPushCurrent");
  }
  if (!wrong.empty()) return wrong;
  // Memory may be short: the context is taken back all the same.
  struct Pop {
    const Driver& driver;
    ~Pop() {
      void* context = nullptr;
      driver.pop_context(&context);
    }
  } pop{*driver};
  CudaStream copies(*driver, stream);
  return RunOnDevice(solver, std::move(inputs), outputs, &copies);
}

}  // namespace mtl_keras

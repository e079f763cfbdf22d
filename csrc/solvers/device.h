// Solvers whose operands lie on a device: copied to the host, solved there, copied back.
// So few numbers take longer to solve on a GPU than to copy.
#ifndef MTL_KERAS_SOLVERS_DEVICE_H_
#define MTL_KERAS_SOLVERS_DEVICE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "solvers/calls.h"

namespace mtl_keras {

// A stream of work on a device. The functions return what went wrong, or nothing.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual std::string ToHost(void* host, const void* device, std::size_t bytes) = 0;
  virtual std::string ToDevice(void* device, const void* host, std::size_t bytes) = 0;
  virtual std::string Wait() = 0;
};

// `inputs` and `outputs` point to the device.
std::string RunOnDevice(const Solver& solver, std::vector<Array> inputs,
                        const std::vector<void*>& outputs, Stream* stream);

// As `RunOnDevice`, on a CUstream. The driver's functions are looked up at run time, in
// libcuda.so.1: nothing of CUDA is needed to build.
std::string RunOnCuda(const Solver& solver, std::vector<Array> inputs,
                      const std::vector<void*>& outputs, void* stream);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_DEVICE_H_

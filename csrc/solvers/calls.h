// The solvers as functions from arrays to arrays, in one form for TensorFlow's ops, for
// XLA's custom calls and for operands that lie on a device.
#ifndef MTL_KERAS_SOLVERS_CALLS_H_
#define MTL_KERAS_SOLVERS_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mtl_keras {

// What an array of a call is; T tasks. All are float64 but `kOrders` and `kScaleMode`,
// which are int32, and `kConverged` and `kSolved`, which are bool.
enum class Kind {
  kGramian,       // [T, T], always the first input
  kTasks,         // [T]
  kMaybeTasks,    // [T], or empty for the default
  kRows,          // [T] or [batch, T], where an output as the second input
  kSquare,        // [T, T]
  kOrders,        // [T, T - 1], entries in [0, T)
  kScalar,        // []
  kNotNegative,   // [], at least 0
  kPositive,      // [], above 0
  kPrecision,     // [], in (0, 1)
  kScaleMode,     // [], a ScaleMode
  kConverged,     // []
  kSolved,        // as the second input without its last dimension
};

enum class Type { kDouble, kInt32, kBool };
Type TypeOf(Kind kind);
std::size_t SizeOf(Type type);

using Dims = std::vector<int64_t>;
std::string Text(const Dims& dims);

struct Array {
  const void* data = nullptr;  // null while a program is compiled
  Dims dims;

  int64_t count() const;
};

struct Input {
  Kind kind;
  const char* name;  // of errors
};

struct Solver {
  const char* name;
  std::vector<Input> inputs;
  std::vector<Kind> outputs;
  // Writes the outputs; inputs are as `Check` wants them.
  void (*run)(const std::vector<Array>& inputs, const std::vector<void*>& outputs);

  // Returns what is wrong with the inputs, or nothing. Values are looked at where there
  // are any.
  std::string Check(const std::vector<Array>& given) const;

  // The dimensions of an output, for inputs that have passed `Check`.
  Dims OutputDims(std::size_t output, const std::vector<Array>& given) const;
};

// The names of the solvers, for registrations: EACH("MinNorm") and so on.
#define MTL_KERAS_FOR_EACH_SOLVER(EACH) \
  EACH("MinNorm")                       \
  EACH("DualCone")                      \
  EACH("UpGrad")                        \
  EACH("DualProj")                      \
  EACH("CaGrad")                        \
  EACH("PowerRoot")                     \
  EACH("PcGrad")                        \
  EACH("GradVac")                       \
  EACH("ImtlG")                         \
  EACH("Config")                        \
  EACH("Aligned")                       \
  EACH("NonnegativeQp")

// The solver of this name, or null.
const Solver* FindSolver(const std::string& name);

}  // namespace mtl_keras

#endif  // MTL_KERAS_SOLVERS_CALLS_H_

#include "solvers/calls.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "solvers/conic.h"
#include "solvers/projection.h"
#include "solvers/quadratic.h"
#include "solvers/root.h"
#include "solvers/spectral.h"

namespace mtl_keras {
namespace {

using Inputs = std::vector<Array>;
using Outputs = std::vector<void*>;

// Int32 indices of a Gram matrix and of its square must not overflow.
constexpr int64_t kMaxTasks = 32768;

int Tasks(const Inputs& inputs) { return static_cast<int>(inputs[0].dims[0]); }

const double* Doubles(const Array& array) {
  return static_cast<const double*>(array.data);
}

const int32_t* Integers(const Array& array) {
  return static_cast<const int32_t*>(array.data);
}

double Number(const Array& array) { return *Doubles(array); }

double* Weights(const Outputs& outputs) { return static_cast<double*>(outputs[0]); }

void Converged(const Outputs& outputs, bool converged) {
  *static_cast<bool*>(outputs.back()) = converged;
}

bool Finite(const Array& array) {
  return std::all_of(Doubles(array), Doubles(array) + array.count(),
                     [](double value) { return std::isfinite(value); });
}

int Batch(const Array& rows) { return static_cast<int>(rows.count() / rows.dims.back()); }

void RunMinNorm(const Inputs& in, const Outputs& out) {
  Converged(out, MinNorm(Doubles(in[0]), Tasks(in), Weights(out)));
}

void RunDualCone(const Inputs& in, const Outputs& out) {
  Converged(out, DualCone(Doubles(in[0]), Tasks(in), Doubles(in[1]), Batch(in[1]),
                          Number(in[2]), Weights(out)));
}

using Projection = bool (*)(const double*, int, const double*, double, double, double*);
template <Projection kProject>
void RunProjection(const Inputs& in, const Outputs& out) {
  const double* preference = in[1].count() > 0 ? Doubles(in[1]) : nullptr;
  Converged(out, kProject(Doubles(in[0]), Tasks(in), preference, Number(in[2]),
                          Number(in[3]), Weights(out)));
}

void RunCaGrad(const Inputs& in, const Outputs& out) {
  Converged(out, CaGrad(Doubles(in[0]), Tasks(in), Number(in[1]), Number(in[2]),
                        Weights(out)));
}

void RunPowerRoot(const Inputs& in, const Outputs& out) {
  const double* shares = in[2].count() > 0 ? Doubles(in[2]) : nullptr;
  Converged(out, PowerRoot(Doubles(in[0]), Tasks(in), Number(in[1]), shares,
                           Number(in[3]), Weights(out)));
}

void RunPcGrad(const Inputs& in, const Outputs& out) {
  Converged(out, PcGrad(Doubles(in[0]), Tasks(in), Integers(in[1]), Weights(out)));
}

void RunGradVac(const Inputs& in, const Outputs& out) {
  double* moved = static_cast<double*>(out[1]);
  std::copy_n(Doubles(in[1]), in[1].count(), moved);
  Converged(out, GradVac(Doubles(in[0]), Tasks(in), Integers(in[2]), Number(in[3]),
                         Number(in[4]), moved, Weights(out)));
}

using Spectral = bool (*)(const double*, int, double, double*);
template <Spectral kSolve>
void RunSpectral(const Inputs& in, const Outputs& out) {
  Converged(out, kSolve(Doubles(in[0]), Tasks(in), Number(in[1]), Weights(out)));
}

void RunAligned(const Inputs& in, const Outputs& out) {
  const auto mode = static_cast<ScaleMode>(*Integers(in[1]));
  Converged(out, Aligned(Doubles(in[0]), Tasks(in), mode, Number(in[2]), Weights(out)));
}

void RunNonnegativeQp(const Inputs& in, const Outputs& out) {
  const int size = Tasks(in);
  Matrix matrix(size);
  std::copy_n(Doubles(in[0]), matrix.data.size(), matrix.data.begin());
  if (!Finite(in[0])) {
    std::fill_n(Weights(out), in[1].count(), 0.0);
    std::fill_n(static_cast<bool*>(out[1]), Batch(in[1]), false);
    return;
  }
  NonnegativeQp program(matrix, Number(in[2]));
  std::vector<char> free(size);
  for (int row = 0; row < Batch(in[1]); ++row) {
    static_cast<bool*>(out[1])[row] =
        program.Solve(Doubles(in[1]) + static_cast<int64_t>(row) * size, false,
                      Weights(out) + static_cast<int64_t>(row) * size, free.data());
  }
}

const std::vector<Solver>& Solvers() {
  static const auto* solvers = [] {
    const Input gramian{Kind::kGramian, "a Gram matrix"};
    const Input precision{Kind::kPrecision, "a precision"};
    const std::vector<Input> projection = {gramian,
                                           {Kind::kMaybeTasks, "a preference"},
                                           {Kind::kScalar, "reg_eps"},
                                           precision};
    const Input orders{Kind::kOrders, "orders"};
    const std::vector<Kind> weights = {Kind::kTasks, Kind::kConverged};
    return new std::vector<Solver>{
        {"MinNorm", {gramian}, weights, RunMinNorm},
        {"DualCone",
         {gramian, {Kind::kRows, "lower bounds"}, precision},
         {Kind::kRows, Kind::kConverged},
         RunDualCone},
        {"UpGrad", projection, weights, RunProjection<UpGrad>},
        {"DualProj", projection, weights, RunProjection<DualProj>},
        {"CaGrad",
         {gramian, {Kind::kNotNegative, "c"}, precision},
         weights,
         RunCaGrad},
        {"PowerRoot",
         {gramian,
          {Kind::kPositive, "alpha"},
          {Kind::kMaybeTasks, "shares"},
          precision},
         weights,
         RunPowerRoot},
        {"PcGrad", {gramian, orders}, weights, RunPcGrad},
        {"GradVac",
         {gramian, {Kind::kSquare, "averages"}, orders, {Kind::kScalar, "beta"}, precision},
         {Kind::kTasks, Kind::kSquare, Kind::kConverged},
         RunGradVac},
        {"ImtlG", {gramian, precision}, weights, RunSpectral<ImtlG>},
        {"Config", {gramian, precision}, weights, RunSpectral<Config>},
        {"Aligned",
         {gramian, {Kind::kScaleMode, "a scale mode"}, precision},
         weights,
         RunAligned},
        {"NonnegativeQp",
         {gramian, {Kind::kRows, "linear terms"}, {Kind::kScalar, "noise"}},
         {Kind::kRows, Kind::kSolved},
         RunNonnegativeQp},
    };
  }();
  return *solvers;
}

template <typename... Parts>
std::string Join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string CheckShape(const Input& input, const Dims& dims, int64_t size) {
  Dims expected;
  switch (input.kind) {
    case Kind::kMaybeTasks:
      if (Array{nullptr, dims}.count() == 0) return "";
      [[fallthrough]];
    case Kind::kTasks:
      expected = {size};
      break;
    case Kind::kGramian:
    case Kind::kSquare:
      expected = {size, size};
      break;
    case Kind::kOrders:
      expected = {size, size - 1};
      break;
    case Kind::kRows:
      if (!dims.empty() && dims.size() <= 2 && dims.back() == size &&
          Array{nullptr, dims}.count() <= std::numeric_limits<int32_t>::max()) {
        return "";
      }
      return Join("Expected ", input.name, " of shape [", size, "] or [batch, ", size,
                  "]. Received: shape ", Text(dims), ".");
    default:
      break;
  }
  if (dims == expected) return "";
  return Join("Expected ", input.name, " of shape ", Text(expected),
              ". Received: shape ", Text(dims), ".");
}

std::string CheckValue(const Input& input, const Array& array) {
  const auto number = [&](bool fits, const char* range) {
    if (fits) return std::string();
    return Join("Expected ", input.name, " ", range, ". Received: ", Number(array), ".");
  };
  switch (input.kind) {
    case Kind::kNotNegative:
      return number(Number(array) >= 0.0, ">= 0");
    case Kind::kPositive:
      return number(Number(array) > 0.0, "> 0");
    case Kind::kPrecision:
      return number(Number(array) > 0.0 && Number(array) < 1.0, "in (0, 1)");
    case Kind::kScaleMode: {
      const int mode = *Integers(array);
      if (mode >= 0 && mode < kNumScaleModes) return "";
      return Join("Expected ", input.name, " in [0, ", int{kNumScaleModes},
                  "). Received: ", mode, ".");
    }
    case Kind::kOrders: {
      const int64_t size = array.dims[0];
      for (int64_t i = 0; i < array.count(); ++i) {
        const int32_t task = Integers(array)[i];
        if (task >= 0 && task < size) continue;
        return Join("Expected orders in [0, ", size, "). Received: ", task, " for task ",
                    i / (size - 1), ".");
      }
      return "";
    }
    default:
      return "";
  }
}

}  // namespace

Type TypeOf(Kind kind) {
  switch (kind) {
    case Kind::kOrders:
    case Kind::kScaleMode:
      return Type::kInt32;
    case Kind::kConverged:
    case Kind::kSolved:
      return Type::kBool;
    default:
      return Type::kDouble;
  }
}

std::size_t SizeOf(Type type) {
  return type == Type::kDouble ? sizeof(double)
                               : type == Type::kInt32 ? sizeof(int32_t) : sizeof(bool);
}

std::string Text(const Dims& dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) {
    text += (i > 0 ? "," : "") + std::to_string(dims[i]);
  }
  return text + "]";
}

int64_t Array::count() const {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  return count;
}

std::string Solver::Check(const std::vector<Array>& given) const {
  if (given.size() != inputs.size()) {
    return Join("Expected ", inputs.size(), " inputs of ", name, ". Received: ",
                given.size(), ".");
  }
  const Dims& dims = given[0].dims;
  if (dims.size() != 2 || dims[0] != dims[1] || dims[0] <= 0 || dims[0] >= kMaxTasks) {
    return Join("Expected a Gram matrix of shape [tasks, tasks]. Received: shape ",
                Text(dims), ".");
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    std::string wrong = CheckShape(inputs[i], given[i].dims, dims[0]);
    if (wrong.empty() && given[i].data != nullptr) wrong = CheckValue(inputs[i], given[i]);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

Dims Solver::OutputDims(std::size_t output, const std::vector<Array>& given) const {
  const int64_t size = given[0].dims[0];
  switch (outputs[output]) {
    case Kind::kTasks:
      return {size};
    case Kind::kSquare:
      return {size, size};
    case Kind::kRows:
      return given[1].dims;
    case Kind::kSolved:
      return Dims(given[1].dims.begin(), given[1].dims.end() - 1);
    default:
      return {};
  }
}

const Solver* FindSolver(const std::string& name) {
  for (const Solver& solver : Solvers()) {
    if (name == solver.name) return &solver;
  }
  return nullptr;
}

}  // namespace mtl_keras

// The one list of optimizers: number, name and planes of each. core/ names them by it, kernels/ registers
// their expressions under it, and the wire's enum (proto/sherd/v1/common.proto) is tested against it.
//
//   const OptimizerInfo* info = FindOptimizer("adamw");    // nullptr: there is none of that name
//   info->planes, info->plane_names[0]                     // 2, "exp_avg"
//
// To add one: a line here and in the wire's enum; its expression (an .inc, listed in optimizers.inc), its
// golden vectors; its options in client/options.h.
//
// Plain constants, without dependencies: the only header of kernels/ that core/ may include.
#ifndef SHERD_KERNELS_OPTIMIZER_KINDS_H_
#define SHERD_KERNELS_OPTIMIZER_KINDS_H_

#include <cstdint>
#include <string_view>

namespace sherd {
namespace kernels {

// Values are stable: they are written to layouts, job records and checkpoints.
enum class OptimizerKind : uint8_t {
  kSgd = 1,
  kAdam = 2,
  kAdamW = 3,
  kAdagrad = 4,
  kLion = 5,
  kLamb = 6,
  kMuon = 7
};

// Planes beside the parameter that an optimizer may have.
constexpr int kMaxPlanes = 3;

struct OptimizerInfo {
  OptimizerKind kind;
  const char* name;                     // as users write it
  int planes;                           // how many of the names below are set
  const char* plane_names[kMaxPlanes];  // as torch.optim's state_dict names them: "exp_avg", ...
  // What of whole tensors has to stand before any block of them is updated:
  bool norms = false;       // sums of squares of values and direction
  bool directions = false;  // the direction itself, of groups that ask for it
};

inline constexpr OptimizerInfo kOptimizers[] = {
    {OptimizerKind::kSgd, "sgd", 1, {"momentum_buffer"}},
    {OptimizerKind::kAdam, "adam", 2, {"exp_avg", "exp_avg_sq"}},
    {OptimizerKind::kAdamW, "adamw", 2, {"exp_avg", "exp_avg_sq"}},
    {OptimizerKind::kAdagrad, "adagrad", 1, {"sum"}},
    {OptimizerKind::kLion, "lion", 1, {"exp_avg"}},
    {OptimizerKind::kLamb, "lamb", 2, {"exp_avg", "exp_avg_sq"}, true},
    {OptimizerKind::kMuon, "muon", 2, {"exp_avg", "exp_avg_sq"}, false, true},
};

// Null if there is no such optimizer.
constexpr const OptimizerInfo* FindOptimizer(uint8_t kind) {
  for (const OptimizerInfo& info : kOptimizers) {
    if (static_cast<uint8_t>(info.kind) == kind) return &info;
  }
  return nullptr;
}
constexpr const OptimizerInfo* FindOptimizer(OptimizerKind kind) {
  return FindOptimizer(static_cast<uint8_t>(kind));
}
constexpr const OptimizerInfo* FindOptimizer(std::string_view name) {
  for (const OptimizerInfo& info : kOptimizers) {
    if (name == info.name) return &info;
  }
  return nullptr;
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_OPTIMIZER_KINDS_H_

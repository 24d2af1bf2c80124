#include "kernels/optimizer.h"

#include <cmath>
#include <iterator>

#include "kernels/lane_tree.h"
#include "kernels/ops.h"
#include "kernels/optimizer_simd.h"

namespace sherd {
namespace kernels {
namespace {

#include "kernels/optimizers.inc"

template <class Optimizer>
void UpdateScalar(const UpdateArgs& args, const Scalars& scalars, int64_t elements) {
  float unused[kMaxPlanes] = {};
  for (int64_t i = 0; i < elements; ++i) {
    float* planes[kMaxPlanes];
    for (int k = 0; k < kMaxPlanes; ++k) {
      planes[k] = k < kPlanesOf<Optimizer> ? args.planes[k] + i : &unused[k];
    }
    Optimizer::template Update<FloatOps>(scalars, args.grad[i], args.param[i], *planes[0], *planes[1],
                                         *planes[2]);
  }
}

template <class Optimizer>
void NormsScalar(const UpdateArgs& args, const Scalars& scalars, double norms[2]) {
  double values[kNormLanes] = {}, directions[kNormLanes] = {};
  for (int64_t i = 0; i < kBlockElements; ++i) {
    float a = args.planes[0][i], b = args.planes[1][i];
    const double value = args.param[i];
    const double direction =
        Optimizer::template Direction<FloatOps>(scalars, args.grad[i], args.param[i], a, b);
    values[i % kNormLanes] += value * value;
    directions[i % kNormLanes] += direction * direction;
  }
  norms[0] = SumLanes(values);
  norms[1] = SumLanes(directions);
}

template <class Optimizer>
constexpr NormsFn NormsOf() {
  if constexpr (FindOptimizer(Optimizer::kKind)->norms) {
    return &NormsScalar<Optimizer>;
  } else {
    return nullptr;
  }
}

// One row of the registry.
struct Entry {
  OptimizerKind kind;
  std::string (*check)(const Hyper&);
  void (*prepare)(const Hyper&, uint64_t, Scalars*);
  UpdateFn update_scalar;
  NormsFn norms_scalar;
};

template <class Optimizer>
constexpr Entry MakeEntry() {
  return {Optimizer::kKind, &Optimizer::Check, &Optimizer::Prepare, &UpdateScalar<Optimizer>,
          NormsOf<Optimizer>()};
}

template <class... Optimizers>
const Entry* Find(OptimizerKind kind, OptimizerList<Optimizers...>) {
  static_assert(sizeof...(Optimizers) == std::size(kOptimizers),
                "optimizer_kinds.h and optimizers.inc differ");
  static constexpr Entry kEntries[] = {MakeEntry<Optimizers>()...};
  for (const Entry& e : kEntries) {
    if (e.kind == kind) return &e;
  }
  return nullptr;
}

const Entry& Get(OptimizerKind kind) {
  const Entry* e = Find(kind, AllOptimizers());
  if (e == nullptr) BreakContract("unknown OptimizerKind; check it with FindOptimizer first");
  return *e;
}

}  // namespace

const OptimizerInfo& Info(OptimizerKind kind) { return *FindOptimizer(Get(kind).kind); }

std::string CheckHyper(OptimizerKind kind, const Hyper& hyper) {
  std::string problem = CheckRange("lr", hyper.lr, 0, HUGE_VAL);
  if (problem.empty()) problem = CheckRange("weight_decay", hyper.weight_decay, 0, HUGE_VAL);
  return problem.empty() ? Get(kind).check(hyper) : problem;
}

Scalars Prepare(OptimizerKind kind, const Hyper& hyper, uint64_t tensor_step, float grad_scale) {
  Require(tensor_step >= 1, "Prepare: tensor_step counts the update at hand, so it is at least 1");
  Scalars s = {};
  s.grad_scale = grad_scale;
  Get(kind).prepare(hyper, tensor_step, &s);
  return s;
}

UpdateFn Resolve(OptimizerKind kind) { return ResolveSimd(kind).update; }

UpdateFn ResolveScalar(OptimizerKind kind) { return Get(kind).update_scalar; }

TwoPasses ResolveTwoPasses(OptimizerKind kind) { return ResolveSimd(kind).passes; }

NormsFn ResolveNormsScalar(OptimizerKind kind) { return Get(kind).norms_scalar; }

JournaledUpdateFn ResolveJournaled(OptimizerKind kind) { return ResolveSimd(kind).update_journaled; }

SaveFn ResolveSave(OptimizerKind kind) { return ResolveSimd(kind).save; }

}  // namespace kernels
}  // namespace sherd

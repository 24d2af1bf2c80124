#include "server/update_scalars.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/trust_ratio.h"

namespace sherd::server {
namespace {

kernels::Hyper ToHyper(const GroupScalars& v) {
  kernels::Hyper h;
  h.lr = v[kLr], h.beta1 = v[kBeta1], h.beta2 = v[kBeta2], h.eps = v[kEps], h.weight_decay = v[kWeightDecay];
  h.momentum = v[kMomentum], h.dampening = v[kDampening], h.nesterov = v[kNesterov] != 0;
  h.lr_decay = v[kLrDecay], h.initial_accumulator_value = v[kInitialAccumulatorValue];
  h.min_coeff = v[kMinCoeff], h.max_coeff = v[kMaxCoeff];
  return h;
}

double TrustOf(const runtime::JobMemory& memory, BlockRange blocks, const kernels::Hyper& h) {
  double values = 0, direction = 0;
  const double* norms = memory.block_norms();
  for (int64_t b = blocks.begin; b < blocks.end; ++b) {
    values += norms[2 * b];
    direction += norms[2 * b + 1];
  }
  return kernels::TrustRatio(values, direction, h.min_coeff, h.max_coeff);
}

}  // namespace

bool Updates(const runtime::JobMemory& memory, const Verdict& verdict, int tensor) {
  return verdict.kind == VerdictKind::kCommit && TestBit(verdict.has_grad, tensor) &&
         memory.layout().tensors()[tensor].blocks.end <= memory.trainable_blocks();
}

absl::StatusOr<std::vector<TensorUpdate>> UpdatesOf(const runtime::JobMemory& memory, const Verdict& verdict,
                                                    const std::vector<UnitRange>& ranges, bool with_trust) {
  const Layout& layout = memory.layout();
  const OptimizerKind kind = memory.spec().optimizer;
  const bool directions = kernels::Info(kind).directions;
  const std::atomic<uint64_t>* before = memory.tensor_steps(Step(verdict.id.step.value() - 1));
  const float grad_scale = static_cast<float>(verdict.grad_scale);
  std::vector<TensorUpdate> updates(layout.tensors().size());
  absl::Status status;
  for (const UnitRange& r : ranges) {
    layout.ForEachRun(r.blocks, [&](int tensor, BlockRange) {
      if (!Updates(memory, verdict, tensor)) return;
      const TensorInfo& info = layout.tensors()[tensor];
      const int32_t group = info.spec.group;
      if (group >= static_cast<int32_t>(verdict.groups.size())) {
        status = absl::InternalError(
            absl::StrCat("tensor ", info.spec.name, " is in group ", group, " of ", verdict.groups.size()));
        return;
      }
      TensorUpdate& u = updates[tensor];
      kernels::Hyper hyper = ToHyper(verdict.groups[group]);
      if (with_trust) hyper.lr *= TrustOf(memory, info.blocks, hyper);
      u.scalars =
          kernels::Prepare(kind, hyper, before[tensor].load(std::memory_order_relaxed) + 1, grad_scale);
      if (!directions || info.spec.shape.size() < 2) return;
      u.ns_steps = static_cast<int>(verdict.groups[group][kNsSteps]);
      u.rows = info.spec.shape[0];
      u.columns = info.numel / u.rows;
      u.muon = kernels::PrepareMuon(hyper, u.rows, u.columns, grad_scale);
    });
  }
  if (!status.ok()) return status;
  return updates;
}

}  // namespace sherd::server

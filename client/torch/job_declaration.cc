#include "client/torch/job_declaration.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/torch/meta_init.h"
#include "client/torch/tensor_checks.h"
#include "core/block_units.h"

namespace sherd::torch {
namespace {

absl::Status CheckOptions(const ZeroOptions& options, int world_size, const std::vector<ParamGroup>& groups) {
  if (options.stage() < 0 || options.stage() > 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("stage is ", options.stage(), ": it must be 0, 1, 2 or 3"));
  }
  absl::Status rules = WorldShare::Check(ShareRules(options, world_size), options.stage());
  if (rules.ok()) rules = WorldShare::CheckWorld(options.virtual_ranks(), world_size);
  if (!rules.ok()) return rules;
  if (groups.empty()) return absl::InvalidArgumentError("there is no parameter group");
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, int>> GroupOf(const NamedTensors& parameters,
                                                   const std::vector<ParamGroup>& groups) {
  std::map<std::string, int> group_of;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].options.kind() != groups[0].options.kind()) {
      return absl::InvalidArgumentError(
          absl::StrCat("parameter group ", g, " has another kind of optimizer than group 0"));
    }
    for (const std::string& name : groups[g].parameters) {
      if (!parameters.contains(name)) {
        return absl::InvalidArgumentError(
            absl::StrCat("parameter group ", g, " names ", name, ", which is no parameter"));
      }
      if (!group_of.emplace(name, g).second) {
        return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is in two groups"));
      }
    }
  }
  return group_of;
}

absl::Status SetPrecision(const ZeroOptions& options, const std::vector<SharedParameter>& parameters,
                          JobSpec* spec) {
  const std::optional<DType>& asked = options.compute();
  const absl::StatusOr<DType> compute = ComputeType(parameters, asked.has_value() ? &*asked : nullptr);
  if (!compute.ok()) return compute.status();
  spec->compute = *compute;
  spec->staging = options.communication().value_or(*compute);
  const LossScaleSpec usual = *compute == DType::kFloat16 ? DynamicLossScale() : LossScaleSpec();
  spec->loss_scale = options.loss_scale().value_or(usual);
  spec->stochastic_rounding = options.stochastic_rounding();
  spec->rounding_seed = options.stochastic_rounding() ? options.seed() : 0;
  return absl::OkStatus();
}

void SetGather(const ZeroOptions& options, const std::vector<SharedParameter>& parameters,
               const std::vector<bool>& persistent, JobSpec* spec) {
  for (size_t u = 0; u < persistent.size(); ++u) {
    if (persistent[u]) spec->gather.persistent.push_back(static_cast<int>(u));
  }
  spec->gather.max_live = std::clamp<int64_t>(options.stage3().prefetch.max_live, 0, kMaxLayoutElements);
  spec->gather.hpz_partition = options.stage3().hpz_partition;
  spec->gather.initial_shares =
      std::all_of(parameters.begin(), parameters.end(), [&](const SharedParameter& p) {
        return persistent[spec->layout.Find(p.name)->unit] || NotedOf(p.tensor).has_value();
      });
}

// Per parameter the first block that gathers it.
std::vector<int> BlockOf(const std::vector<std::shared_ptr<ShardedBlock>>& blocks,
                         const std::vector<SharedParameter>& parameters) {
  std::map<at::TensorImpl*, int> first;
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (const at::Tensor& t : blocks[b]->Own(blocks)) first.emplace(t.unsafeGetTensorImpl(), b);
  }
  std::vector<int> block_of;
  for (const SharedParameter& p : parameters) {
    const auto found = first.find(p.tensor.unsafeGetTensorImpl());
    block_of.push_back(found == first.end() ? kNoBlock : found->second);
  }
  return block_of;
}

}  // namespace

absl::StatusOr<JobDeclaration> DeclareJob(const NamedTensors& parameters,
                                          const std::vector<ParamGroup>& groups, const ZeroOptions& options,
                                          int world_size, const NamedTensors& named_buffers,
                                          SharedBuffers* buffers,
                                          const std::vector<std::shared_ptr<ShardedBlock>>& blocks) {
  if (absl::Status ok = CheckOptions(options, world_size, groups); !ok.ok()) return ok;
  const absl::StatusOr<std::map<std::string, int>> group_of = GroupOf(parameters, groups);
  if (!group_of.ok()) return group_of.status();
  JobDeclaration d;
  std::vector<TensorSpec> specs;
  std::set<at::TensorImpl*> seen;
  for (const auto& item : parameters) {
    absl::Status ok = CheckParameter(item.key(), item.value());
    if (!ok.ok()) return ok;
    const auto group = group_of->find(item.key());
    if (!seen.insert(item.value().unsafeGetTensorImpl()).second) continue;  // tied: under its first name
    if (group == group_of->end()) {
      return absl::InvalidArgumentError(absl::StrCat("parameter ", item.key(), " is in no parameter group"));
    }
    SharedParameter p;
    p.name = item.key();
    p.tensor = item.value();
    d.parameters.push_back(p);
    specs.push_back({p.name, p.tensor.sizes().vec(), *DTypeOf(p.tensor.scalar_type()), group->second,
                     p.tensor.requires_grad()});
  }
  JobSpec& spec = d.spec;
  if (absl::Status s = SetPrecision(options, d.parameters, &spec); !s.ok()) return s;
  if (options.compute().has_value()) {
    for (TensorSpec& t : specs) t.dtype = spec.compute;
  }
  // Gradients come about in the reverse order of the forward pass.
  std::reverse(specs.begin(), specs.end());
  std::vector<std::vector<TensorSpec>> units;
  if (options.stage() == 3) {
    std::vector<int> block_of = BlockOf(blocks, d.parameters);
    std::reverse(block_of.begin(), block_of.end());
    BlockUnits packed = PackBlocks(specs, block_of, options.bucket_elements(), options.stage3().persistence);
    units = std::move(packed.units);
    d.persistent = std::move(packed.persistent);
  } else {
    units = PackUnits(std::move(specs), options.bucket_elements());
  }
  absl::StatusOr<Layout> layout = Layout::Create(std::move(units));
  if (!layout.ok()) return layout.status();
  spec.layout = *layout;
  spec.optimizer = groups[0].options.kind();
  for (const ParamGroup& g : groups) {
    d.scalars.push_back(g.options.scalars());
    spec.groups.push_back(g.name);
  }
  spec.stage = options.stage();
  if (spec.stage == 3) SetGather(options, d.parameters, d.persistent, &spec);
  spec.virtual_ranks = options.virtual_ranks();
  spec.shard_ranks = options.shard_ranks();
  spec.parts = options.stage() >= 2 ? options.accumulation() : 1;
  if (spec.virtual_ranks > 0) spec.parts = spec.virtual_ranks;
  spec.nominal_samples = WorldShare(ShareRules(options, world_size)).nominal_samples();
  for (const auto& buffer : named_buffers) {
    at::Tensor tensor = buffer.value();
    Materialise(buffer.key(), &tensor);
  }
  if (absl::Status declared = buffers->Declare(named_buffers, &spec); !declared.ok()) return declared;
  return d;
}

void OpenBlocks(const std::vector<std::shared_ptr<ShardedBlock>>& blocks, const Layout& layout,
                const std::vector<SharedParameter>& parameters,
                std::shared_ptr<client::ParameterWindow> window) {
  std::map<at::TensorImpl*, int> unit_of;
  for (const SharedParameter& p : parameters) {
    unit_of[p.tensor.unsafeGetTensorImpl()] = layout.tensors()[p.index].unit;
  }
  for (const std::shared_ptr<ShardedBlock>& block : blocks) {
    std::set<int> units;
    if (window != nullptr) {
      for (const at::Tensor& t : block->Own(blocks)) {
        const auto found = unit_of.find(t.unsafeGetTensorImpl());
        if (found != unit_of.end()) units.insert(found->second);
      }
    }
    // The layout's order is that of backward; forward wants the last first.
    block->Open(window, std::vector<int>(units.rbegin(), units.rend()));
  }
}

}  // namespace sherd::torch

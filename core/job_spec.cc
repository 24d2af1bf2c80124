#include "core/job_spec.h"

#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/utf8.h"

namespace sherd {
namespace {

template <typename T>
absl::Status CheckIn(absl::string_view field, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, "=", value, " is not in ", low, "..", high));
}

absl::Status CheckBuffers(const JobSpec& spec) {
  if (spec.buffers.size() > kMaxBuffers) {
    return absl::InvalidArgumentError(
        absl::StrCat("buffers: ", spec.buffers.size(), " of them, at most ", kMaxBuffers));
  }
  absl::flat_hash_set<absl::string_view> names;
  int64_t total = 0;
  for (const BufferSpec& b : spec.buffers) {
    if (b.name.empty() || b.name.size() > kMaxTensorNameBytes || !IsValidUtf8(b.name)) {
      return absl::InvalidArgumentError(absl::StrCat("buffer name of ", b.name.size(),
                                                     " bytes is empty, longer than ", kMaxTensorNameBytes,
                                                     " or not UTF-8"));
    }
    if (spec.layout.Find(b.name) != nullptr || !names.insert(b.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("buffer ", b.name, ": the name is used twice"));
    }
    const int64_t element_bytes = BufferElementBytes(b.dtype);
    if (element_bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat("buffer ", b.name, ": unknown dtype \"", b.dtype, "\""));
    }
    const absl::optional<int64_t> numel = CountElements(b.shape);
    if (b.shape.size() > kMaxTensorRank || !numel.has_value() || *numel > kMaxBufferBytes / element_bytes ||
        (total += *numel * element_bytes) > kMaxBufferBytes) {
      return absl::InvalidArgumentError(absl::StrCat("buffer ", b.name, ": shape [",
                                                     absl::StrJoin(b.shape, ","),
                                                     "] is negative, too large or has too many dimensions"));
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CheckEqual(const JobSpec& job, absl::string_view field, const T& have, const T& asked) {
  if (have == asked) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(field, " is ", have, " in job ", job.job, " but ", asked,
                                                    " was asked for: all trainers of a job must agree"));
}

absl::Status CheckGather(const JobSpec& spec) {
  const int units = static_cast<int>(spec.layout.units().size());
  int before = -1;
  for (const int u : spec.gather.persistent) {
    if (u <= before || u >= units) {
      return absl::InvalidArgumentError(absl::StrCat("gather.persistent: unit ", u, " after ", before,
                                                     " is out of order or not one of the layout's ", units));
    }
    before = u;
  }
  if (absl::Status s = CheckIn<int>("gather.hpz_partition", spec.gather.hpz_partition, 0, kMaxWorldSize);
      !s.ok())
    return s;
  const std::vector<int32_t>& hosts = spec.reduction.groups;  // ranks of each
  if (spec.gather.keep() && !hosts.empty() &&
      std::find(hosts.begin(), hosts.end(), spec.gather.hpz_partition) == hosts.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gather.hpz_partition=", spec.gather.hpz_partition,
        " (zero_hpz_partition_size) is not the number of ranks of a host, which are ",
        absl::StrJoin(hosts, ","), ": write one of these, and each host keeps what it has gathered, ",
        "or 1, and none does"));
  }
  return CheckIn<int64_t>("gather.max_live", spec.gather.max_live, 0, kMaxLayoutElements);
}

absl::Status CheckPrecision(const JobSpec& spec) {
  for (const absl::Status& s :
       {CheckIn<int>("compute_dtype", static_cast<int>(spec.compute), 1, 3),
        CheckIn<int>("staging_dtype", static_cast<int>(spec.staging), 1, 3), Validate(spec.loss_scale)}) {
    if (!s.ok()) return s;
  }
  if (spec.stochastic_rounding && spec.compute == DType::kFloat32) {
    return absl::InvalidArgumentError(
        "stochastic_rounding=1 with compute_dtype=fp32: nothing is rounded there; compute in bf16 or fp16");
  }
  for (const TensorInfo& t : spec.layout.tensors()) {
    if (t.spec.dtype == DType::kFloat32 || t.spec.dtype == spec.compute) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor ", t.spec.name, ": dtype=", Name(t.spec.dtype),
                                                   " but compute_dtype=", Name(spec.compute),
                                                   ": a tensor is of that or fp32"));
  }
  return absl::OkStatus();
}

std::string Describe(const TensorSpec& t) {
  return absl::StrCat(t.name, " ", Name(t.dtype), "[", absl::StrJoin(t.shape, ","), "] group ", t.group,
                      t.trainable ? "" : " frozen");
}

std::string Describe(const BufferSpec& b) {
  return absl::StrCat(b.name, " ", b.dtype, "[", absl::StrJoin(b.shape, ","), "]");
}

// Names the first tensor in which two layouts differ.
absl::Status CheckSameLayout(const JobSpec& job, const Layout& asked) {
  if (job.layout == asked) return absl::OkStatus();
  const std::vector<TensorInfo>& a = job.layout.tensors();
  const std::vector<TensorInfo>& b = asked.tensors();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (!(a[i].spec == b[i].spec)) {
      return CheckEqual(job, absl::StrCat("tensor ", i), Describe(a[i].spec), Describe(b[i].spec));
    }
  }
  if (absl::Status s = CheckEqual(job, "number of tensors", a.size(), b.size()); !s.ok()) return s;
  return CheckEqual(job, "division into units", absl::StrCat(job.layout.units().size(), " units"),
                    absl::StrCat(asked.units().size(), " units of other sizes"));
}

absl::Status CheckSameBuffers(const JobSpec& job, const std::vector<BufferSpec>& asked) {
  if (absl::Status s = CheckEqual(job, "number of buffers", job.buffers.size(), asked.size()); !s.ok())
    return s;
  for (size_t i = 0; i < asked.size(); ++i) {
    if (job.buffers[i] == asked[i]) continue;
    return CheckEqual(job, absl::StrCat("buffer ", i), Describe(job.buffers[i]), Describe(asked[i]));
  }
  return absl::OkStatus();
}

}  // namespace

std::string Name(OptimizerKind kind) {
  const kernels::OptimizerInfo* info = kernels::FindOptimizer(kind);
  return info == nullptr ? "unknown" : info->name;
}

std::vector<std::string> OptimizerPlanes(OptimizerKind kind) {
  const kernels::OptimizerInfo* info = kernels::FindOptimizer(kind);
  if (info == nullptr) return {};
  return {info->plane_names, info->plane_names + info->planes};
}

int64_t BufferElementBytes(absl::string_view dtype) {
  for (absl::string_view one : {"BOOL", "U8", "I8"}) {
    if (dtype == one) return 1;
  }
  for (absl::string_view two : {"I16", "U16", "F16", "BF16"}) {
    if (dtype == two) return 2;
  }
  for (absl::string_view four : {"I32", "U32", "F32"}) {
    if (dtype == four) return 4;
  }
  for (absl::string_view eight : {"I64", "U64", "F64"}) {
    if (dtype == eight) return 8;
  }
  return 0;
}

int64_t BufferBytes(const BufferSpec& buffer) {
  return CountElements(buffer.shape).value_or(0) * BufferElementBytes(buffer.dtype);
}

std::vector<std::string> JobSpec::PlaneNames() const {
  std::vector<std::string> names = {"param"};
  for (std::string& plane : OptimizerPlanes(optimizer)) names.push_back(std::move(plane));
  return names;
}

bool IsValidName(absl::string_view name) {
  if (name.empty() || name.size() > 64 || name[0] == '.') return false;
  for (const char c : name) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                    c == '_' || c == '-';
    if (!ok) return false;
  }
  return true;
}

absl::Status Validate(const JobSpec& spec) {
  if (!IsValidName(spec.job)) {
    return absl::InvalidArgumentError(
        absl::StrCat("job=\"", spec.job.substr(0, 80),
                     "\" is not 1..64 characters of [A-Za-z0-9._-], not beginning with a dot"));
  }
  if (kernels::FindOptimizer(spec.optimizer) == nullptr) {
    const auto name = [](std::string* out, const kernels::OptimizerInfo& info) {
      absl::StrAppend(out, static_cast<int>(info.kind), " (", info.name, ")");
    };
    return absl::InvalidArgumentError(absl::StrCat("optimizer.kind=", static_cast<int>(spec.optimizer),
                                                   " is none of ",
                                                   absl::StrJoin(kernels::kOptimizers, ", ", name)));
  }
  for (const absl::Status& s :
       {CheckIn("world_size", spec.world_size, 1, kMaxWorldSize), CheckIn("stage", spec.stage, 0, 3),
        CheckIn("accumulation_parts", spec.parts, 1, spec.stage >= 2 ? kMaxParts : 1),
        CheckIn("shard_ranks (mics_shard_size)", spec.shard_ranks, 0, spec.world_size),
        CheckIn<int64_t>("max_blob_bytes", spec.max_blob_bytes, 0, kMaxBlobBytes),
        CheckIn<int64_t>("number of optimizer.groups", spec.groups.size(), 1, kMaxGroups)}) {
    if (!s.ok()) return s;
  }
  if (spec.virtual_ranks != 0 &&
      (spec.virtual_ranks != spec.parts || spec.virtual_ranks % spec.world_size != 0 ||
       !spec.reduction.groups.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat("virtual_ranks=", spec.virtual_ranks, " with accumulation_parts=", spec.parts,
                     ", world_size=", spec.world_size, " and ", spec.reduction.groups.size(),
                     " groups: it is the parts of a step, which ranks in one group share evenly"));
  }
  if (!std::isfinite(spec.nominal_samples) || spec.nominal_samples <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("nominal_samples=", spec.nominal_samples, " is not above 0 and finite"));
  }
  for (const std::string& name : spec.groups) {
    if (name.size() > kMaxTensorNameBytes || !IsValidUtf8(name)) {
      return absl::InvalidArgumentError(absl::StrCat("group name of ", name.size(), " bytes is longer than ",
                                                     kMaxTensorNameBytes, " or not UTF-8"));
    }
  }
  for (const TensorInfo& t : spec.layout.tensors()) {
    if (t.spec.group < static_cast<int64_t>(spec.groups.size())) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor ", t.spec.name, ": group=", t.spec.group,
                                                   " but there are ", spec.groups.size(), " groups"));
  }
  if (absl::Status s = CheckGather(spec); !s.ok()) return s;
  if (absl::Status s = Validate(spec.reduction, spec.world_size); !s.ok()) return s;
  if (absl::Status s = CheckPrecision(spec); !s.ok()) return s;
  return CheckBuffers(spec);
}

absl::StatusOr<int> ShardRanksFor(const JobSpec& spec, int replicas) {
  const std::vector<int32_t>& ranks = spec.reduction.groups;
  const int hosts = std::max<int>(1, static_cast<int>(ranks.size()));
  JobSpec tried;
  tried.reduction = spec.reduction;
  for (int group = hosts / (replicas + 1); group >= 1; --group) {
    if (hosts % group != 0) continue;
    tried.shard_ranks = std::accumulate(ranks.begin(), ranks.begin() + group, 0);
    if (ShardHosts(tried, hosts) == group) return tried.shard_ranks;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "replicas=", replicas, " needs ", replicas + 1, " groups of hosts with as many ranks each: the job's ",
      hosts, " hosts have ", absl::StrJoin(ranks, ", "), " ranks"));
}

int ShardHosts(const JobSpec& spec, int hosts) {
  if (spec.shard_ranks == 0 || hosts == 1) return hosts;
  const std::vector<int32_t>& ranks = spec.reduction.groups;
  int each = 0, in_group = 0;
  for (int h = 0, from = 0; h < hosts && h < static_cast<int>(ranks.size()); ++h) {
    in_group += ranks[h];
    if (in_group < spec.shard_ranks) continue;
    if (in_group > spec.shard_ranks || (each != 0 && h + 1 - from != each)) return 0;
    each = h + 1 - from;
    from = h + 1;
    in_group = 0;
  }
  return in_group == 0 ? each : 0;
}

absl::Status CheckSame(const JobSpec& job, const JobSpec& asked) {
  for (const absl::Status& s :
       {CheckEqual(job, "job", job.job, asked.job),
        CheckEqual(job, "world_size", job.world_size, asked.world_size),
        CheckEqual(job, "stage", job.stage, asked.stage),
        CheckEqual(job, "optimizer.kind", Name(job.optimizer), Name(asked.optimizer)),
        CheckEqual(job, "number of optimizer.groups", job.groups.size(), asked.groups.size()),
        CheckEqual(job, "optimizer.groups", absl::StrJoin(job.groups, ","), absl::StrJoin(asked.groups, ",")),
        CheckEqual(job, "accumulation_parts", job.parts, asked.parts),
        CheckEqual(job, "virtual_ranks", job.virtual_ranks, asked.virtual_ranks),
        CheckEqual(job, "nominal_samples", job.nominal_samples, asked.nominal_samples),
        CheckEqual(job, "max_blob_bytes", job.max_blob_bytes, asked.max_blob_bytes),
        CheckEqual(job, "reduce_groups", Describe(job.reduction), Describe(asked.reduction)),
        CheckEqual(job, "shard_ranks", job.shard_ranks, asked.shard_ranks),
        CheckEqual(job, "gather.persistent", absl::StrJoin(job.gather.persistent, ","),
                   absl::StrJoin(asked.gather.persistent, ",")),
        CheckEqual(job, "gather.initial_shares", job.gather.initial_shares, asked.gather.initial_shares),
        CheckEqual(job, "gather.hpz_partition", job.gather.hpz_partition, asked.gather.hpz_partition),
        CheckEqual(job, "compute_dtype", Name(job.compute), Name(asked.compute)),
        CheckEqual(job, "staging_dtype", Name(job.staging), Name(asked.staging)),
        CheckEqual(job, "loss_scale", Describe(job.loss_scale), Describe(asked.loss_scale)),
        CheckEqual(job, "stochastic_rounding", job.stochastic_rounding, asked.stochastic_rounding),
        CheckEqual(job, "rounding_seed", job.rounding_seed, asked.rounding_seed)}) {
    if (!s.ok()) return s;
  }
  if (absl::Status s = CheckSameLayout(job, asked.layout); !s.ok()) return s;
  return CheckSameBuffers(job, asked.buffers);
}

}  // namespace sherd

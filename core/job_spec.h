// What a job is and stays: fixed by the first trainer that attaches, agreed to by all others, and kept with
// the job's memory so that any server, or a successor, learns it from there.
//
//   JobSpec spec;  spec.job = "gpt";  spec.layout = *Layout::Create(...);  spec.optimizer =
//   OptimizerKind::kAdamW; ... absl::Status ok = Validate(spec); absl::Status same = CheckSame(spec, asked);
//   // "world_size is 4 in job gpt but 3 was asked for: ..."
#ifndef SHERD_CORE_JOB_SPEC_H_
#define SHERD_CORE_JOB_SPEC_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/layout.h"
#include "core/loss_scale.h"
#include "core/reduction_tree.h"
#include "core/types.h"
#include "kernels/optimizer_kinds.h"

namespace sherd {

// Bounds of what a peer may declare.
inline constexpr int kMaxWorldSize = 4096;
inline constexpr int kMaxParts = 32768;
inline constexpr int kMaxGroups = 65536;
inline constexpr int kMaxBuffers = 100000;
inline constexpr int64_t kMaxBlobBytes = int64_t{1} << 20;
inline constexpr int64_t kMaxBufferBytes = int64_t{1} << 36;  // of all buffers together

// The optimizer that the owners apply.
using kernels::OptimizerKind;

// "adamw", ...; "unknown" for a value that is none.
std::string Name(OptimizerKind kind);

// Planes beside "param", in the order of kernels::OptimizerInfo::plane_names. None for a value that is no
// optimizer.
std::vector<std::string> OptimizerPlanes(OptimizerKind kind);

// Replicated state that rank 0 hands over with each step.
struct BufferSpec {
  std::string name;            // unique among buffers and tensors
  std::vector<int64_t> shape;  // empty: a scalar
  std::string dtype;           // as safetensors names it
  friend bool operator==(const BufferSpec& a, const BufferSpec& b) {
    return a.name == b.name && a.shape == b.shape && a.dtype == b.dtype;
  }
};

// Bytes of one element of a safetensors dtype ("F32", "I64", ...), or 0 if it is not one a buffer may have.
int64_t BufferElementBytes(absl::string_view dtype);

// Bytes of a valid buffer's values.
int64_t BufferBytes(const BufferSpec& buffer);

// Stage 3: what hosts of a job of several have of the parameters.
struct GatherSpec {
  std::vector<int> persistent;  // units that every host has whole, in order; of others each has its share
  int64_t max_live = 0;         // elements gathered beyond which a host gathers nothing ahead of its use
  // Initial values of units that are not persistent: each host writes its share, and they are nowhere whole.
  // False: rank 0 writes them all, and hosts are sent their shares.
  bool initial_shares = false;
  // zero_hpz_partition_size: the ranks of a host; then a host keeps what it has gathered until there are
  // newer values, whatever max_live says. 0, 1: it does not. On one host, where nothing is sent, no number
  // has an effect.
  int hpz_partition = 0;
  bool keep() const { return hpz_partition > 1; }
};

struct JobSpec {
  std::string job;   // IsValidName
  std::string uuid;  // told apart from an earlier job of that name; set by whoever creates its directory
  Layout layout = *Layout::Create({});
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  std::vector<std::string> groups;  // names, possibly empty; at least one group
  int world_size = 1;               // 1..kMaxWorldSize
  int stage = 2;                    // 0, 1, 2, 3
  int parts = 1;                    // deliveries of a unit in a step, 1..kMaxParts; 1 in stages 0, 1
  double nominal_samples = 1;       // of one rank and step, > 0, finite
  int64_t max_blob_bytes = kMaxBlobBytes;
  std::vector<BufferSpec> buffers;

  ReductionTree reduction;  // in which order gradients are added up
  // Of a job of several hosts: how many ranks, in order, share one copy of the state (HostGrid). 0: all. Of
  // one host: nothing, its ranks share in any case.
  int shard_ranks = 0;
  // Each delivery of a unit is a virtual rank's: they are added one after the other, part 0 of ranks 0, 1,
  // ..., then part 1, so that the sum is the same whoever delivers which. `parts` of them. Else 0.
  int virtual_ranks = 0;

  GatherSpec gather;  // of stage 3; the first trainer's limit counts
  // Whether trainers have the unit's parameters only while it is gathered.
  bool IsGathered(int unit) const {
    return stage == 3 && !std::binary_search(gather.persistent.begin(), gather.persistent.end(), unit);
  }

  // Mixed precision. Masters and optimizer planes are fp32 whatever stands here, and so are all sums.
  DType compute =
      DType::kFloat32;  // of the parameters that trainers compute with; a tensor is of this or fp32
  DType staging = DType::kFloat32;  // that gradients are delivered as
  LossScaleSpec loss_scale;
  bool stochastic_rounding = false;  // of updated parameters to a 16-bit `compute`; else to nearest even
  uint64_t rounding_seed = 0;        // of the noise, with the tensor's count of updates and the element

  // "param" and the optimizer's.
  std::vector<std::string> PlaneNames() const;
};

// How many of a job's `hosts` make up each group that holds the state once: all, if shard_ranks is 0. 0: the
// ranks of hosts do not add up to groups of shard_ranks each. REQUIRES: each host's ranks are a group of
// spec.reduction, or hosts is 1.
int ShardHosts(const JobSpec& spec, int hosts);
// The shard_ranks with which a job keeps `replicas` further copies of its state, each on other hosts, or more
// where its hosts cannot be divided so; as few as can be. INVALID_ARGUMENT: too few hosts, or groups of them
// would have different numbers of ranks. REQUIRES: replicas >= 1.
absl::StatusOr<int> ShardRanksFor(const JobSpec& spec, int replicas);

// OK, or INVALID_ARGUMENT naming the field and its value.
absl::Status Validate(const JobSpec& spec);

// OK if `asked` describes the same job as `job`, uuid aside; else FAILED_PRECONDITION naming the first field
// that differs and both values.
absl::Status CheckSame(const JobSpec& job, const JobSpec& asked);

// True for 1..64 characters of [A-Za-z0-9._-] not beginning with '.': names of jobs and servers, which become
// file names.
bool IsValidName(absl::string_view name);

}  // namespace sherd

#endif  // SHERD_CORE_JOB_SPEC_H_

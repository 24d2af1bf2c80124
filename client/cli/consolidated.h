// How a job's state is named in a consolidated safetensors file, both ways: what `sherd pull` writes and
// `sherd push` takes.
//
//   parameter "wte.weight"                 wte.weight
//   buffer "bn.running_mean"               bn.running_mean
//   plane "exp_avg" of "wte.weight"        exp_avg/wte.weight
//   updates of "wte.weight" so far         step/wte.weight         (one fp32 number)
//
// Tied weights are one tensor of the job, so they are there once. Pure; thread-safe.
#ifndef SHERD_CLIENT_CLI_CONSOLIDATED_H_
#define SHERD_CLIENT_CLI_CONSOLIDATED_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/tensor_list.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/formats/checkpoint.h"

namespace sherd::cli {

struct PullPlan {
  formats::CheckpointPlan checkpoint;
  // For each file, what fills its data, in order.
  std::vector<std::vector<v1::TensorRef>> refs;
};

// Files of at most `max_file_bytes` with `dtype` parameters; errors as formats::SplitPlan, and
// INVALID_ARGUMENT for a buffer of an unknown type.
absl::StatusOr<PullPlan> PlanPull(const TensorList& job, v1::DType dtype, bool with_optimizer,
                                  uint64_t max_file_bytes, const std::string& stem,
                                  const formats::Metadata& metadata);

struct PushPlan {
  struct Item {
    std::string stored_name;
    uint64_t bytes = 0;
  };
  v1::ImportManifest manifest;
  std::vector<Item> items;  // as in the manifest
  uint64_t bytes = 0;
  int skipped_buffers = 0;  // rank 0 hands buffers over at every step, so they cannot be pushed
};

// Matches a file with the job. INVALID_ARGUMENT in one line that names the tensor and both values: a tensor
// that the job does not have, or that the file lacks (all parameters; all of the optimizer or nothing of it),
// another shape, a type that is none of F32, BF16, F16.
absl::StatusOr<PushPlan> PlanPush(const TensorList& job, const std::vector<formats::TensorEntry>& stored);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_CONSOLIDATED_H_

// How a job's state is named in files, both ways: what `sherd pull` writes and `sherd push` takes.
//
//   parameter "wte.weight"                 wte.weight
//   buffer "bn.running_mean"               bn.running_mean
//   plane "exp_avg" of "wte.weight"        exp_avg/wte.weight
//   updates of "wte.weight" so far         step/wte.weight         (one fp32 number)
//
// Safetensors have these names; the other formats have their own structure, which their readers
// (runtime/formats) turn into these. Tied weights are one tensor of the job, so they are there once. Pure;
// thread-safe.
#ifndef SHERD_CLIENT_CLI_CONSOLIDATED_H_
#define SHERD_CLIENT_CLI_CONSOLIDATED_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/tensor_list.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/formats/tensor_entry.h"

namespace sherd::cli {

// One tensor of a job in one plane, as it is to be pulled.
struct JobValue {
  std::string plane;  // "param", "buffer", "exp_avg", ..., "step"
  std::string name;
  formats::StoredType type = formats::StoredType::kF32;
  std::vector<int64_t> shape;
  bool frozen = false;

  std::string stored_name() const;
  v1::TensorRef ref() const;
};

// All of a job, a tensor's planes together, buffers last. Parameters come as `dtype`, other planes as fp32.
// INVALID_ARGUMENT for a buffer of an unknown type.
absl::StatusOr<std::vector<JobValue>> ValuesOf(const TensorList& job, v1::DType dtype, bool with_optimizer);

struct PushChoice {
  enum class Optimizer {
    kIfThere,   // what the file holds of it
    kRequired,  // and it must hold it
    kLeaveOut,
  };
  Optimizer optimizer = Optimizer::kIfThere;
  // Takes the tensors that both have, and leaves out the others.
  bool partial = false;
};

struct PushPlan {
  struct Item {
    std::string stored_name;
    uint64_t bytes = 0;
  };
  v1::ImportManifest manifest;
  std::vector<Item> items;  // as in the manifest
  uint64_t bytes = 0;
  int skipped_buffers = 0;             // rank 0 hands buffers over at every step, so they cannot be pushed
  std::vector<std::string> missing;    // parameters of the job that the file lacks: with `partial` alone
  std::vector<std::string> left_over;  // of the file, that the job lacks: likewise
};

// Matches a file with the job. INVALID_ARGUMENT in one line that names the tensor and both values: tensors
// that the job does not have, or that the file lacks (all parameters; all of the optimizer or nothing of it),
// another shape, a type that is none of F32, BF16, F16.
absl::StatusOr<PushPlan> PlanPush(const TensorList& job, const std::vector<formats::TensorEntry>& stored,
                                  const PushChoice& choice);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_CONSOLIDATED_H_

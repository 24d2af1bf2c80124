// What of a checkpoint goes where in a job, at whatever sizes both are: tensors are matched by name, blocks
// are found by the same arithmetic of ownership that a resize uses (core/reshard_plan.h), with files in the
// place of the owners before.
//
//   absl::StatusOr<RestorePlan> plan = RestorePlan::Open(from, spec);
//   RestoreTarget target;
//   target.into = ...;
//   absl::StatusOr<int64_t> n = ReadPart(*plan, memory, {/*share=*/1, /*shares=*/3}, target, go_on);
//
// Pure but for Open and ReadPart, which block on the disk. Thread-safe.
#ifndef SHERD_SERVER_RESTORE_PLAN_H_
#define SHERD_SERVER_RESTORE_PLAN_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/job_spec.h"
#include "core/types.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/job_memory.h"
#include "server/checkpoint_manifest.h"

namespace sherd::server {

class RestorePlan {
 public:
  // The checkpoint that `from` names, or weights that other programs wrote (saved_weights.h): then weights
  // only, whatever `from` says. Errors are OpenCheckpoint's, OpenWeights's and Create's.
  static absl::StatusOr<RestorePlan> Open(const v1::RestoreFrom& from, const JobSpec& job);
  // `from`: weights_only and partial count. Unless partial, every tensor of the job must be there in its
  // shape, and every one of the checkpoint in the job.
  //   INVALID_ARGUMENT     names the first tensor that is missing, or differs (both shapes)
  //   FAILED_PRECONDITION  another optimizer's state: say weights_only
  static absl::StatusOr<RestorePlan> Create(SavedCheckpoint saved, const JobSpec& job,
                                            const v1::RestoreFrom& from);

  const SavedCheckpoint& saved() const { return saved_; }
  bool weights_only() const { return weights_only_; }
  // Names on each side; bytes and duration are left to the caller.
  v1::RestoreReport Report(const JobSpec& job) const;

  // Of a tensor of the job: its index in the checkpoint's layout, or -1.
  int SavedTensor(int tensor) const { return source_[tensor]; }
  // Updates that a matched tensor has had; 0 for weights only.
  uint64_t UpdateCount(int tensor) const;
  // Planes of the job that are restored for a tensor: its first few, in the job's order.
  int PlanesFor(const TensorInfo& tensor) const;

 private:
  RestorePlan(SavedCheckpoint saved, bool weights_only)
      : saved_(std::move(saved)), weights_only_(weights_only) {}

  SavedCheckpoint saved_;
  bool weights_only_;
  int planes_ = 1;
  std::vector<int> source_;
  std::vector<std::string> extra_;
};

// What is restored where.
struct RestoreTarget {
  // Told of a piece of a tensor, from several threads at once.
  using Piece = std::function<void(int tensor, int plane, BlockRange blocks)>;

  // Where the values of `blocks` (of one tensor, all that are wanted of it) in a plane go; null: nowhere.
  std::function<float*(int plane, BlockRange blocks)> into;
  // Which of a tensor's blocks in a plane are restored, in one piece; if null: all.
  using Wanted = std::function<BlockRange(const TensorInfo& tensor, int plane)>;
  Wanted wanted;
  // When a piece has its values; may be null.
  Piece stored;
};

// One of `shares` readers of all that has a place to go. A checkpoint's files are shared out by whole chunks,
// whoever owns the blocks: each chunk is read and checked once however the sizes of both jobs lie to each
// other. Weights are shared out by elements.
struct RestoreShare {
  int share = 0;
  int shares = 1;
};

// `go_on`: false from it ends the call (CANCELLED); asked before anything is stored. Bytes stored.
//   DATA_LOSS  names the damaged file
absl::StatusOr<int64_t> ReadPart(const RestorePlan& plan, const runtime::JobMemory& memory,
                                 RestoreShare share, const RestoreTarget& target,
                                 const std::function<bool()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_RESTORE_PLAN_H_

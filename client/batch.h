// The samples of one micro-batch of one rank, and how a global batch is split. Torch-free.
#ifndef SHERD_CLIENT_BATCH_H_
#define SHERD_CLIENT_BATCH_H_

#include <cstdint>

#include "absl/status/status.h"

namespace sherd {

// Half-open range of sample indices within a global batch. May be empty: a batch smaller than the world.
struct SampleRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
};

// The part of a global batch that `rank` of `world_size` computes in micro-batch `micro` of `micros`. The
// parts are disjoint and cover the batch; each rank's are contiguous and in order; sizes differ by at most
// one, both between ranks and between micro-batches. REQUIRES: 0 <= global_batch < 2^40; 0 <= rank <
// world_size; 0 <= micro < micros; world_size * micros < 2^22.
SampleRange ShareOf(int64_t global_batch, int64_t world_size, int64_t rank, int64_t micros, int64_t micro);

// Seed of one micro-batch of one rank in one step: a pure function, so a replacement draws what its
// predecessor drew.
uint64_t SeedOf(uint64_t seed, uint64_t step, int rank, int micro);

// What Begin hands out. False at the end of training (status OK), when a resize has let this rank go (status
// OK, `left`) and on an error.
struct Batch {
  absl::Status status;
  bool more = false;
  // First batch of a rank that a resize has taken in: blob() is what the job has committed, from now on.
  bool joined = false;
  bool left = false;  // the job goes on without this rank: detach as finished, and exit
  uint64_t step = 0;  // the update it is for; 1 is the first
  int micro = 0, micros = 1;
  SampleRange samples;           // of the step's global batch; {0, 0} if ZeroOptions::global_batch is 0
  int64_t global_batch = 0;      // samples of the step over all ranks, if ZeroOptions says how many
  int world_size = 1, rank = 0;  // of the step
  uint64_t epoch = 0;            // of the membership
  uint64_t seed = 0;             // of this step, micro-batch and rank, for dropout and the like
  explicit operator bool() const { return more && status.ok(); }
};

// What Step tells.
struct StepInfo {
  bool complete = false;  // false after a micro-batch that is not its step's last: nothing below is set then
  bool aborted = false;   // the step was given up; Begin hands it out again
  bool skipped = false;   // a gradient was not finite: no update was made, the step counts
  uint64_t step = 0;
  uint64_t epoch = 0;
  int world_size = 1, rank = 0;
  double loss = 0;             // mean over all samples of the step, if ranks passed theirs
  double grad_norm = 0;        // of the mean gradient, before clipping
  double loss_scale = 1;       // that this step's loss was multiplied by
  uint64_t skipped_steps = 0;  // of the job so far, this one included
  double lr = 0;               // of parameter group 0, in this step
  uint64_t samples = 0;
  // Stage 3, in this process: units gathered in the step, how many uses found theirs gathered ahead, and the
  // most parameter memory that was gathered at one time since the beginning.
  int64_t gathers = 0, prefetch_hits = 0, peak_parameter_bytes = 0;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_BATCH_H_

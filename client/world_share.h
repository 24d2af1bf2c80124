// What one rank computes of a step, and how it counts, in a job whose number of ranks may change. Torch-free.
//
//   WorldShare share({/*global_batch=*/64, /*accumulation=*/2});
//   share.Enter(/*world_size=*/3, /*rank=*/1);
//   for (int micro = 0; micro < share.micros(); ++micro) ... share.Samples(micro) ...
//
// Virtual ranks. With V of them a step is V micro-batches, whoever computes them: rank r of W computes
// virtual ranks r, r + W, r + 2W, ... of V, one after the other, and owners add them up in the order 0, 1,
// ... V - 1, each to the sum of those before it. That order does not know W, so neither does the result: a
// run with V virtual ranks is bit-equal at every W that divides V, and through resizes between such.
//
// Value; thread-compatible.
#ifndef SHERD_CLIENT_WORLD_SHARE_H_
#define SHERD_CLIENT_WORLD_SHARE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "client/batch.h"

namespace sherd {

// What stays when the number of ranks changes.
enum class OnResize {
  kKeepGlobalBatch,  // samples of a step: they are shared out anew
  kKeepMicroBatch,   // samples of a rank and step, about: the global batch grows and shrinks with the ranks
};
// How learning rates follow a global batch that is k times that of the beginning.
enum class RateRule { kNone, kLinear, kSquareRoot };  // x 1, x k, x sqrt(k)

class WorldShare {
 public:
  struct Rules {
    int64_t global_batch =
        0;  // samples of a step; with kKeepMicroBatch, of the world it began with. 0: callers split
    int accumulation = 1;   // micro-batches of a rank and step
    int virtual_ranks = 0;  // 0: none; else the accumulation follows from them
    OnResize on_resize = OnResize::kKeepGlobalBatch;
    RateRule rate = RateRule::kNone;
    uint64_t seed = 0;
    int first_world = 1;  // ranks that the job began with
  };

  // INVALID_ARGUMENT names the rule that cannot be kept: sizes below 1, virtual ranks that are no power of
  // two, do not divide the batch, or need what the job does not do (`stage` below 2).
  static absl::Status Check(const Rules& rules, int stage);
  // INVALID_ARGUMENT: so many ranks cannot share the virtual ones.
  static absl::Status CheckWorld(int virtual_ranks, int world_size);

  explicit WorldShare(const Rules& rules) : rules_(rules) {}

  // REQUIRES: CheckWorld(rules.virtual_ranks, world_size).
  void Enter(int world_size, int rank);
  int world_size() const { return world_size_; }
  int rank() const { return rank_; }

  // Micro-batches of this rank in a step.
  int micros() const;
  // Samples of a step over all ranks; 0 if callers split.
  int64_t global_batch() const;
  // Of a step's samples, those of one micro-batch. Empty range if callers split.
  SampleRange Samples(int micro) const;
  uint64_t Seed(uint64_t step, int micro) const;
  // Samples of a usual micro-batch: what the scale of a delivery is relative to. 1 if callers split.
  double nominal_samples() const;
  // What learning rates are multiplied by.
  double rate_factor() const;

 private:
  Rules rules_;
  int world_size_ = 1, rank_ = 0;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_WORLD_SHARE_H_

// What a configuration asks of training, in Sherd's terms. Plain values, complete: nothing is "auto" any
// more.
//
// Made by DeepSpeedConfig::Resolve; what each field comes from is in client/config/README.md.
#ifndef SHERD_CLIENT_CONFIG_TRAINING_CONFIG_H_
#define SHERD_CLIENT_CONFIG_TRAINING_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/types/optional.h"
#include "client/options.h"
#include "core/loss_scale.h"
#include "core/schedule.h"
#include "core/types.h"

namespace sherd {

struct TrainingConfig {
  int stage = 0;         // 0..3
  Stage3Options stage3;  // the keys stage3_*
  // The optimizer of the file, or the program's.
  OptimizerOptions optimizer = AdamWOptions();
  // Of Muon alone: for parameters that are no hidden matrices (embeddings, heads, norms, biases).
  absl::optional<OptimizerOptions> others;
  bool has_optimizer = false;             // the file names one
  absl::optional<ScheduleSpec> schedule;  // of the file
  double max_grad_norm = 0;               // 0: no clipping

  // train_batch = micro_batch x accumulation x trainers; all 0 where neither the file nor the program says.
  // Where the program alone says, train_batch may be split unevenly, and micro_batch is the largest share.
  int64_t train_batch = 0, micro_batch = 0;
  int accumulation = 1;

  DType compute = DType::kFloat32;
  absl::optional<DType> communication;  // of gradients on their way; unset: `compute`
  LossScaleSpec loss_scale;
  int shard_ranks = 0;          // that hold the state once; 0: all
  int64_t bucket_elements = 0;  // the most that are reduced together

  bool offload_optimizer = false, offload_param = false;  // asked for; both are so in any case

  // The part of ZeroOptions that is said here. A model computes in what it is made of unless 16 bits are
  // asked for.
  ZeroOptions Zero() const {
    ZeroOptions zero;
    zero.stage(stage).max_grad_norm(max_grad_norm).global_batch(train_batch).accumulation(accumulation);
    zero.bucket_elements(bucket_elements).stage3(stage3).shard_ranks(shard_ranks);
    if (compute != DType::kFloat32) zero.compute(compute);
    if (compute == DType::kFloat16) zero.loss_scale(loss_scale);
    if (communication.has_value()) zero.communication(*communication);
    return zero;
  }
};

}  // namespace sherd

#endif  // SHERD_CLIENT_CONFIG_TRAINING_CONFIG_H_

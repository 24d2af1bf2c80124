// What a trainer asks for: optimizer and its scalars (optimizer_options.h), sharding. Torch-free; names as in
// torch.optim and in DeepSpeed's configuration.
//
//   ZeroOptions().stage(2).max_grad_norm(1.0).global_batch(64).accumulation(4)
#ifndef SHERD_CLIENT_OPTIONS_H_
#define SHERD_CLIENT_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "client/optimizer_options.h"
#include "client/world_share.h"
#include "core/block_units.h"
#include "core/prefetch_plan.h"

namespace sherd {

// What stage 3 gathers and keeps: the keys stage3_* of zero_optimization.
struct Stage3Options {
  PrefetchLimits prefetch;
  PersistenceLimits persistence;
  // zero_hpz_partition_size. Of several hosts: the number of ranks of one; then each host keeps what it has
  // gathered until values change, and every unit comes from the others once a step. 0 or 1: it does not.
  int hpz_partition = 0;
};

// How the job is sharded and stepped. Every rank passes the same.
class ZeroOptions {
 public:
  // 0: optimizer state whole on every host. 1: partitioned. 2: gradients leave the trainer as their units
  // become complete. 3: parameters too are there only while a block computes (client/torch/sharded.h).
  ZeroOptions& stage(int v) { return stage_ = v, *this; }
  ZeroOptions& stage3(const Stage3Options& v) { return stage3_ = v, *this; }
  // Global norm to clip to; 0: no clipping.
  ZeroOptions& max_grad_norm(double v) { return max_grad_norm_ = v, *this; }
  // Samples of one step over all ranks; Begin hands out each rank's share, and means are weighted by samples.
  // 0: the caller splits, and every micro-batch of every rank counts the same.
  ZeroOptions& global_batch(int64_t v) { return global_batch_ = v, *this; }
  // Micro-batches of one step.
  ZeroOptions& accumulation(int v) { return accumulation_ = v, *this; }
  // Arithmetic of so many ranks, however many there are: bit-equal results at every number of them that
  // divides it (world_share.h). A power of two; the accumulation follows from it. 0: none. Stage 2 or more.
  ZeroOptions& virtual_ranks(int v) { return virtual_ranks_ = v, *this; }
  // On several hosts: groups of so many ranks, those of one host or of several, each hold the state once and
  // update it alike; what they exchange is gradients (MiCS). 0: all ranks are one group.
  ZeroOptions& shard_ranks(int v) { return shard_ranks_ = v, *this; }
  // When `sherd resize --trainers` changes the number of ranks: whether the global batch stays, or each
  // rank's part of it; and how the learning rates follow a global batch that changes.
  ZeroOptions& on_resize(OnResize v) { return on_resize_ = v, *this; }
  ZeroOptions& rate_rule(RateRule v) { return rate_rule_ = v, *this; }
  // Steps until Begin says that training is over; 0: never.
  ZeroOptions& steps(uint64_t v) { return steps_ = v, *this; }
  // Seed of Batch::seed.
  ZeroOptions& seed(uint64_t v) { return seed_ = v, *this; }
  // Elements that a unit gathers before it is reduced.
  ZeroOptions& bucket_elements(int64_t v) { return bucket_elements_ = v, *this; }
  // Mixed precision: the parameters become this type, a rounded copy of fp32 masters that the servers keep;
  // fp32 parameters are converted. Unset: parameters stay as they are, fp32 or 16 bits.
  ZeroOptions& compute(DType v) { return compute_ = v, *this; }
  // Type of gradients on their way; unset: `compute`. Sums over ranks and micro-batches are fp32 in any case.
  ZeroOptions& communication(DType v) { return communication_ = v, *this; }
  // Unset: dynamic from 65536 for fp16, else none. ZeroOptimizer::Scale applies it.
  ZeroOptions& loss_scale(LossScaleSpec v) { return loss_scale_ = v, *this; }
  // Rounds updated 16-bit parameters up or down by chance, with the mean right (noise from `seed`, update and
  // element), instead of to nearest even.
  ZeroOptions& stochastic_rounding(bool v) { return stochastic_rounding_ = v, *this; }
  // Told every two seconds while a step waits: for how long, and for whom.
  ZeroOptions& on_wait(std::function<void(double seconds, const std::string& for_whom)> f) {
    return on_wait_ = std::move(f), *this;
  }

  int stage() const { return stage_; }
  const Stage3Options& stage3() const { return stage3_; }
  double max_grad_norm() const { return max_grad_norm_; }
  int64_t global_batch() const { return global_batch_; }
  int accumulation() const { return accumulation_; }
  int virtual_ranks() const { return virtual_ranks_; }
  int shard_ranks() const { return shard_ranks_; }
  OnResize on_resize() const { return on_resize_; }
  RateRule rate_rule() const { return rate_rule_; }
  uint64_t steps() const { return steps_; }
  uint64_t seed() const { return seed_; }
  int64_t bucket_elements() const { return bucket_elements_; }
  const std::optional<DType>& compute() const { return compute_; }
  const std::optional<DType>& communication() const { return communication_; }
  const std::optional<LossScaleSpec>& loss_scale() const { return loss_scale_; }
  bool stochastic_rounding() const { return stochastic_rounding_; }
  const std::function<void(double, const std::string&)>& on_wait() const { return on_wait_; }

 private:
  int stage_ = 1;
  Stage3Options stage3_;
  double max_grad_norm_ = 0;
  int64_t global_batch_ = 0;
  int accumulation_ = 1;
  int virtual_ranks_ = 0;
  int shard_ranks_ = 0;
  OnResize on_resize_ = OnResize::kKeepGlobalBatch;
  RateRule rate_rule_ = RateRule::kNone;
  uint64_t steps_ = 0;
  uint64_t seed_ = 0;
  int64_t bucket_elements_ = int64_t{4} << 20;
  std::optional<DType> compute_, communication_;
  std::optional<LossScaleSpec> loss_scale_;
  bool stochastic_rounding_ = false;
  std::function<void(double, const std::string&)> on_wait_;
};

// How the ranks of a job that began with `first_world` of them share out its steps.
inline WorldShare::Rules ShareRules(const ZeroOptions& options, int first_world) {
  return {options.global_batch(),
          options.accumulation(),
          options.virtual_ranks(),
          options.on_resize(),
          options.rate_rule(),
          options.seed(),
          first_world};
}

}  // namespace sherd

#endif  // SHERD_CLIENT_OPTIONS_H_

// What a trainer asks for: optimizer, its scalars, sharding. Torch-free; names as in torch.optim and in
// DeepSpeed's configuration.
//
//   AdamWOptions().lr(3e-4).weight_decay(0.1)
//   ZeroOptions().stage(2).max_grad_norm(1.0).global_batch(64).accumulation(4)
#ifndef SHERD_CLIENT_OPTIONS_H_
#define SHERD_CLIENT_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/job_spec.h"
#include "core/step_records.h"

namespace sherd {

// An optimizer and the scalars of one parameter group.
class OptimizerOptions {
 public:
  OptimizerOptions(OptimizerKind kind, GroupScalars scalars) : kind_(kind), scalars_(scalars) {}
  OptimizerKind kind() const { return kind_; }
  const GroupScalars& scalars() const { return scalars_; }

 protected:
  OptimizerKind kind_;
  GroupScalars scalars_{};
};

// Scalars that every optimizer has, with torch.optim's defaults where they agree.
inline GroupScalars DefaultScalars() {
  GroupScalars s{};
  s[kLr] = 1e-3, s[kBeta1] = 0.9, s[kBeta2] = 0.999, s[kEps] = 1e-8;
  return s;
}

template <typename Self>
class AdamLikeOptions : public OptimizerOptions {
 public:
  using OptimizerOptions::OptimizerOptions;
  Self& lr(double v) { return Set(kLr, v); }
  Self& betas(double b1, double b2) { return Set(kBeta1, b1), Set(kBeta2, b2); }
  Self& eps(double v) { return Set(kEps, v); }
  Self& weight_decay(double v) { return Set(kWeightDecay, v); }

 private:
  Self& Set(ScalarField f, double v) {
    scalars_[f] = v;
    return static_cast<Self&>(*this);
  }
};

// Decoupled weight decay (Loshchilov and Hutter, 2019), default 0.01 as in torch.
class AdamWOptions : public AdamLikeOptions<AdamWOptions> {
 public:
  AdamWOptions() : AdamLikeOptions(OptimizerKind::kAdamW, DefaultScalars()) { weight_decay(0.01); }
};

// Weight decay is added to the gradient (Kingma and Ba, 2015), default 0.
class AdamOptions : public AdamLikeOptions<AdamOptions> {
 public:
  AdamOptions() : AdamLikeOptions(OptimizerKind::kAdam, DefaultScalars()) {}
};

class SgdOptions : public OptimizerOptions {
 public:
  explicit SgdOptions(double lr) : OptimizerOptions(OptimizerKind::kSgd, DefaultScalars()) {
    scalars_[kLr] = lr;
  }
  SgdOptions& momentum(double v) { return scalars_[kMomentum] = v, *this; }
  SgdOptions& dampening(double v) { return scalars_[kDampening] = v, *this; }
  SgdOptions& weight_decay(double v) { return scalars_[kWeightDecay] = v, *this; }
  SgdOptions& nesterov(bool v) { return scalars_[kNesterov] = v ? 1 : 0, *this; }
};

// How the job is sharded and stepped. Every rank passes the same.
class ZeroOptions {
 public:
  // 0: optimizer state whole on every host. 1: partitioned. 2: gradients leave the trainer as their units
  // become complete.
  ZeroOptions& stage(int v) { return stage_ = v, *this; }
  // Global norm to clip to; 0: no clipping.
  ZeroOptions& max_grad_norm(double v) { return max_grad_norm_ = v, *this; }
  // Samples of one step over all ranks; Begin hands out each rank's share, and means are weighted by samples.
  // 0: the caller splits, and every micro-batch of every rank counts the same.
  ZeroOptions& global_batch(int64_t v) { return global_batch_ = v, *this; }
  // Micro-batches of one step.
  ZeroOptions& accumulation(int v) { return accumulation_ = v, *this; }
  // Steps until Begin says that training is over; 0: never.
  ZeroOptions& steps(uint64_t v) { return steps_ = v, *this; }
  // Seed of Batch::seed.
  ZeroOptions& seed(uint64_t v) { return seed_ = v, *this; }
  // Elements that a unit gathers before it is reduced.
  ZeroOptions& bucket_elements(int64_t v) { return bucket_elements_ = v, *this; }
  // Told every two seconds while a step waits: for how long, and for whom.
  ZeroOptions& on_wait(std::function<void(double seconds, const std::string& for_whom)> f) {
    return on_wait_ = std::move(f), *this;
  }

  int stage() const { return stage_; }
  double max_grad_norm() const { return max_grad_norm_; }
  int64_t global_batch() const { return global_batch_; }
  int accumulation() const { return accumulation_; }
  uint64_t steps() const { return steps_; }
  uint64_t seed() const { return seed_; }
  int64_t bucket_elements() const { return bucket_elements_; }
  const std::function<void(double, const std::string&)>& on_wait() const { return on_wait_; }

 private:
  int stage_ = 1;
  double max_grad_norm_ = 0;
  int64_t global_batch_ = 0;
  int accumulation_ = 1;
  uint64_t steps_ = 0;
  uint64_t seed_ = 0;
  int64_t bucket_elements_ = int64_t{4} << 20;
  std::function<void(double, const std::string&)> on_wait_;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_OPTIONS_H_

// Which optimizer the servers apply, and the scalars of one parameter group, with the names and defaults of
// torch.optim (or of the paper, where torch 1.13 lacks it).
//
//   AdamWOptions().lr(3e-4).weight_decay(0.1)
//   OptimizerOptions any(FindOptimizer("lion")->kind);  any.Set(kLr, 1e-4);    // chosen at run time
//
// Values are checked where they are used: a step with one that no optimizer can work with is rejected by the
// owners, with a line that names the field. Plain values; thread-compatible.
#ifndef SHERD_CLIENT_OPTIMIZER_OPTIONS_H_
#define SHERD_CLIENT_OPTIMIZER_OPTIONS_H_

#include "core/job_spec.h"
#include "core/step_records.h"

namespace sherd {

// What a group of this optimizer has where nothing is said. Fields that are not its own hold values that pass
// every check.
GroupScalars DefaultScalars(OptimizerKind kind);

// An optimizer and the scalars of one parameter group.
class OptimizerOptions {
 public:
  explicit OptimizerOptions(OptimizerKind kind) : OptimizerOptions(kind, DefaultScalars(kind)) {}
  OptimizerOptions(OptimizerKind kind, GroupScalars scalars) : kind_(kind), scalars_(scalars) {}
  OptimizerKind kind() const { return kind_; }
  const GroupScalars& scalars() const { return scalars_; }
  void Set(ScalarField field, double value) { scalars_[field] = value; }

 protected:
  OptimizerKind kind_;
  GroupScalars scalars_{};
};

// What the options below share: lr and weight_decay of every optimizer, and setters that can be chained.
template <typename Self>
class NamedOptions : public OptimizerOptions {
 public:
  using OptimizerOptions::OptimizerOptions;
  Self& lr(double v) { return With(kLr, v); }
  Self& weight_decay(double v) { return With(kWeightDecay, v); }

 protected:
  Self& With(ScalarField f, double v) {
    Set(f, v);
    return static_cast<Self&>(*this);
  }
};

template <typename Self>
class AdamLikeOptions : public NamedOptions<Self> {
 public:
  using NamedOptions<Self>::NamedOptions;
  Self& betas(double b1, double b2) { return this->With(kBeta1, b1), this->With(kBeta2, b2); }
  Self& eps(double v) { return this->With(kEps, v); }
};

// Decoupled weight decay (Loshchilov and Hutter, 2019), default 0.01 as in torch.
class AdamWOptions : public AdamLikeOptions<AdamWOptions> {
 public:
  AdamWOptions() : AdamLikeOptions(OptimizerKind::kAdamW) {}
};

// Weight decay is added to the gradient (Kingma and Ba, 2015), default 0.
class AdamOptions : public AdamLikeOptions<AdamOptions> {
 public:
  AdamOptions() : AdamLikeOptions(OptimizerKind::kAdam) {}
};

class SgdOptions : public NamedOptions<SgdOptions> {
 public:
  explicit SgdOptions(double lr) : NamedOptions(OptimizerKind::kSgd) { Set(kLr, lr); }
  SgdOptions& momentum(double v) { return With(kMomentum, v); }
  SgdOptions& dampening(double v) { return With(kDampening, v); }
  SgdOptions& nesterov(bool v) { return With(kNesterov, v ? 1 : 0); }
};

// Duchi, Hazan and Singer, 2011. lr 0.01, eps 1e-10.
class AdagradOptions : public NamedOptions<AdagradOptions> {
 public:
  AdagradOptions() : NamedOptions(OptimizerKind::kAdagrad) {}
  AdagradOptions& lr_decay(double v) { return With(kLrDecay, v); }
  AdagradOptions& eps(double v) { return With(kEps, v); }
  AdagradOptions& initial_accumulator_value(double v) { return With(kInitialAccumulatorValue, v); }
};

// Chen et al., 2023. lr 1e-4, betas 0.9 and 0.99; weight decay is decoupled, default 0.
class LionOptions : public NamedOptions<LionOptions> {
 public:
  LionOptions() : NamedOptions(OptimizerKind::kLion) {}
  LionOptions& betas(double b1, double b2) { return With(kBeta1, b1), With(kBeta2, b2); }
};

// You et al., 2020: AdamW's direction times a trust ratio for each tensor, bounded as DeepSpeed bounds it
// (0.01 to 10; max_coeff 0: no upper bound). Weight decay is part of the direction, default 0.
class LambOptions : public AdamLikeOptions<LambOptions> {
 public:
  LambOptions() : AdamLikeOptions(OptimizerKind::kLamb) {}
  LambOptions& coeffs(double min, double max) { return With(kMinCoeff, min), With(kMaxCoeff, max); }
};

// Jordan et al., 2024: hidden matrices move along their orthogonalised momentum, by Newton-Schulz steps on
// the whole matrix. lr, momentum, nesterov, weight_decay (decoupled, default 0.1) and eps as
// torch.optim.Muon's, lr multiplied by sqrt(max(1, rows / columns)). Parameters with more dimensions count as
// [first, rest]; those with fewer, and groups with ns_steps 0 (embeddings, heads), are AdamW's, with betas
// and eps.
class MuonOptions : public AdamLikeOptions<MuonOptions> {
 public:
  MuonOptions() : AdamLikeOptions(OptimizerKind::kMuon) {}
  MuonOptions& momentum(double v) { return With(kMomentum, v); }
  MuonOptions& nesterov(bool v) { return With(kNesterov, v ? 1 : 0); }
  MuonOptions& ns_steps(int v) { return With(kNsSteps, v); }
};

}  // namespace sherd

#endif  // SHERD_CLIENT_OPTIMIZER_OPTIONS_H_

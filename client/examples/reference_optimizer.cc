#include "client/examples/reference_optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace sherd::examples {
namespace {

namespace optim = ::torch::optim;

// ---------------------------------------------------------------- libtorch's own

std::unique_ptr<optim::OptimizerOptions> TorchOptions(const OptimizerOptions& options) {
  const GroupScalars& s = options.scalars();
  switch (options.kind()) {
    case OptimizerKind::kSgd:
      return std::make_unique<optim::SGDOptions>(optim::SGDOptions(s[kLr])
                                                     .momentum(s[kMomentum])
                                                     .dampening(s[kDampening])
                                                     .weight_decay(s[kWeightDecay])
                                                     .nesterov(s[kNesterov] != 0));
    case OptimizerKind::kAdam:
      return std::make_unique<optim::AdamOptions>(optim::AdamOptions(s[kLr])
                                                      .betas({s[kBeta1], s[kBeta2]})
                                                      .eps(s[kEps])
                                                      .weight_decay(s[kWeightDecay]));
    case OptimizerKind::kAdamW:
      return std::make_unique<optim::AdamWOptions>(optim::AdamWOptions(s[kLr])
                                                       .betas({s[kBeta1], s[kBeta2]})
                                                       .eps(s[kEps])
                                                       .weight_decay(s[kWeightDecay]));
    case OptimizerKind::kAdagrad:
      return std::make_unique<optim::AdagradOptions>(
          optim::AdagradOptions(s[kLr])
              .lr_decay(s[kLrDecay])
              .eps(s[kEps])
              .weight_decay(s[kWeightDecay])
              .initial_accumulator_value(s[kInitialAccumulatorValue]));
    default:
      return nullptr;
  }
}

std::unique_ptr<optim::Optimizer> TorchOptimizer(OptimizerKind kind,
                                                 std::vector<optim::OptimizerParamGroup> groups) {
  switch (kind) {
    case OptimizerKind::kSgd:
      return std::make_unique<optim::SGD>(std::move(groups), optim::SGDOptions(0));
    case OptimizerKind::kAdam:
      return std::make_unique<optim::Adam>(std::move(groups), optim::AdamOptions());
    case OptimizerKind::kAdamW:
      return std::make_unique<optim::AdamW>(std::move(groups), optim::AdamWOptions());
    default:
      return std::make_unique<optim::Adagrad>(std::move(groups), optim::AdagradOptions());
  }
}

class LibtorchOptimizer : public ReferenceOptimizer {
 public:
  explicit LibtorchOptimizer(std::vector<ReferenceGroup> groups) : kind_(groups[0].options.kind()) {
    std::vector<optim::OptimizerParamGroup> theirs;
    for (ReferenceGroup& g : groups) theirs.emplace_back(std::move(g.parameters), TorchOptions(g.options));
    optimizer_ = TorchOptimizer(kind_, std::move(theirs));
  }

  void Step() override { optimizer_->step(); }
  void SetRate(int group, double lr) override { optimizer_->param_groups()[group].options().set_lr(lr); }
  void SetBetas(int group, double beta1, double beta2) override {
    optim::OptimizerOptions& options = optimizer_->param_groups()[group].options();
    if (kind_ == OptimizerKind::kAdam) static_cast<optim::AdamOptions&>(options).betas({beta1, beta2});
    if (kind_ == OptimizerKind::kAdamW) static_cast<optim::AdamWOptions&>(options).betas({beta1, beta2});
  }

  std::vector<at::Tensor> State(const at::Tensor& parameter) const override {
    const auto found = optimizer_->state().find(c10::guts::to_string(parameter.unsafeGetTensorImpl()));
    if (found == optimizer_->state().end()) return {};
    const optim::OptimizerParamState& state = *found->second;
    switch (kind_) {
      case OptimizerKind::kSgd:
        return {static_cast<const optim::SGDParamState&>(state).momentum_buffer()};
      case OptimizerKind::kAdam:
        return {static_cast<const optim::AdamParamState&>(state).exp_avg(),
                static_cast<const optim::AdamParamState&>(state).exp_avg_sq()};
      case OptimizerKind::kAdamW:
        return {static_cast<const optim::AdamWParamState&>(state).exp_avg(),
                static_cast<const optim::AdamWParamState&>(state).exp_avg_sq()};
      default:
        return {static_cast<const optim::AdagradParamState&>(state).sum()};
    }
  }

 private:
  const OptimizerKind kind_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

// ---------------------------------------------------------------- from the papers

// What these share: a count of updates and tensors of state for each parameter, zeros at first.
class PaperOptimizer : public ReferenceOptimizer {
 public:
  explicit PaperOptimizer(std::vector<ReferenceGroup> groups) : groups_(std::move(groups)) {}

  void Step() override {
    c10::NoGradGuard no_grad;
    for (const ReferenceGroup& g : groups_) {
      for (at::Tensor parameter : g.parameters) {
        if (!parameter.grad().defined()) continue;
        Held& held = state_[parameter.unsafeGetTensorImpl()];
        const size_t planes = kernels::FindOptimizer(g.options.kind())->planes;
        while (held.state.size() < planes) held.state.push_back(at::zeros_like(parameter));
        ++held.updates;
        Update(g.options.scalars(), held.updates, parameter, parameter.grad(), held.state);
      }
    }
  }

  void SetRate(int group, double lr) override { groups_[group].options.Set(kLr, lr); }
  void SetBetas(int group, double beta1, double beta2) override {
    groups_[group].options.Set(kBeta1, beta1);
    groups_[group].options.Set(kBeta2, beta2);
  }

  std::vector<at::Tensor> State(const at::Tensor& parameter) const override {
    const auto found = state_.find(parameter.unsafeGetTensorImpl());
    return found == state_.end() ? std::vector<at::Tensor>() : found->second.state;
  }

 private:
  struct Held {
    int64_t updates = 0;
    std::vector<at::Tensor> state;
  };
  virtual void Update(const GroupScalars& s, int64_t updates, at::Tensor& parameter, const at::Tensor& grad,
                      std::vector<at::Tensor>& state) = 0;

  std::vector<ReferenceGroup> groups_;
  std::map<at::TensorImpl*, Held> state_;
};

// Chen et al., arXiv 2302.06675, algorithm 2.
class Lion : public PaperOptimizer {
  using PaperOptimizer::PaperOptimizer;
  void Update(const GroupScalars& s, int64_t, at::Tensor& parameter, const at::Tensor& grad,
              std::vector<at::Tensor>& state) override {
    at::Tensor& m = state[0];
    const at::Tensor mixed = m * s[kBeta1] + grad * (1 - s[kBeta1]);
    parameter.mul_(1 - s[kLr] * s[kWeightDecay]).sub_(mixed.sign() * s[kLr]);
    m.mul_(s[kBeta2]).add_(grad, 1 - s[kBeta2]);
  }
};

// You et al., arXiv 1904.00962, algorithm 2, with DeepSpeed's bounds of the ratio.
class Lamb : public PaperOptimizer {
  using PaperOptimizer::PaperOptimizer;
  void Update(const GroupScalars& s, int64_t updates, at::Tensor& parameter, const at::Tensor& grad,
              std::vector<at::Tensor>& state) override {
    at::Tensor &m = state[0], &v = state[1];
    m.mul_(s[kBeta1]).add_(grad, 1 - s[kBeta1]);
    v.mul_(s[kBeta2]).addcmul_(grad, grad, 1 - s[kBeta2]);
    const double n = static_cast<double>(updates);
    const at::Tensor direction =
        (m / (1 - std::pow(s[kBeta1], n))) / ((v / (1 - std::pow(s[kBeta2], n))).sqrt() + s[kEps]) +
        parameter * s[kWeightDecay];
    const double values = parameter.norm(2, at::kDouble).item<double>();
    const double along = direction.norm(2, at::kDouble).item<double>();
    double ratio = values > 0 && along > 0 ? std::max(s[kMinCoeff], values / along) : 1;
    if (s[kMaxCoeff] > 0 && values > 0 && along > 0) ratio = std::min(ratio, s[kMaxCoeff]);
    parameter.sub_(direction, s[kLr] * ratio);
  }
};

// Jordan et al., 2024, as torch.optim.Muon, in fp32; what is no matrix, or in a group without Newton-Schulz
// steps, as AdamW.
class Muon : public PaperOptimizer {
  using PaperOptimizer::PaperOptimizer;
  void Update(const GroupScalars& s, int64_t updates, at::Tensor& parameter, const at::Tensor& grad,
              std::vector<at::Tensor>& state) override {
    at::Tensor &m = state[0], &v = state[1];
    parameter.mul_(1 - s[kLr] * s[kWeightDecay]);
    if (s[kNsSteps] == 0 || parameter.dim() < 2) {
      m.mul_(s[kBeta1]).add_(grad, 1 - s[kBeta1]);
      v.mul_(s[kBeta2]).addcmul_(grad, grad, 1 - s[kBeta2]);
      const double n = static_cast<double>(updates);
      const at::Tensor denominator = v.sqrt() / std::sqrt(1 - std::pow(s[kBeta2], n)) + s[kEps];
      parameter.addcdiv_(m, denominator, -s[kLr] / (1 - std::pow(s[kBeta1], n)));
      return;
    }
    m.mul_(s[kMomentum]).add_(grad, 1 - s[kMomentum]);
    at::Tensor x = s[kNesterov] != 0 ? grad * (1 - s[kMomentum]) + m * s[kMomentum] : m.clone();
    x = x.flatten(1);
    const bool tall = x.size(0) > x.size(1);
    const double rate = s[kLr] * std::sqrt(std::max(1.0, static_cast<double>(x.size(0)) / x.size(1)));
    if (tall) x = x.t();
    x = x / std::max(x.norm().item<double>(), s[kEps]);
    for (int step = 0; step < s[kNsSteps]; ++step) {
      const at::Tensor gram = at::mm(x, x.t());
      x = x * 3.4445 + at::mm(gram * -4.7750 + at::mm(gram, gram) * 2.0315, x);
    }
    parameter.sub_((tall ? x.t() : x).reshape(parameter.sizes()), rate);
  }
};

}  // namespace

std::unique_ptr<ReferenceOptimizer> MakeReferenceOptimizer(std::vector<ReferenceGroup> groups) {
  switch (groups[0].options.kind()) {
    case OptimizerKind::kLion:
      return std::make_unique<Lion>(std::move(groups));
    case OptimizerKind::kLamb:
      return std::make_unique<Lamb>(std::move(groups));
    case OptimizerKind::kMuon:
      return std::make_unique<Muon>(std::move(groups));
    default:
      return std::make_unique<LibtorchOptimizer>(std::move(groups));
  }
}

}  // namespace sherd::examples

#include "client/examples/reference_trainer.h"

#include <ATen/ATen.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/examples/gpt_config.h"
#include "client/examples/torch_errors.h"
#include "client/examples/weights.h"

namespace sherd::examples {
namespace {

std::vector<torch::optim::OptimizerParamGroup> Groups(const Gpt& model, const TrainOptions& options) {
  std::vector<at::Tensor> decayed, others;
  for (const auto& item : model.named_parameters())
    (IsDecayed(item.key()) ? decayed : others).push_back(item.value());
  const auto group = [&](std::vector<at::Tensor> parameters, double weight_decay) {
    auto adamw = std::make_unique<torch::optim::AdamWOptions>(options.lr);
    adamw->betas({kBeta1, kBeta2}).eps(kEpsilon).weight_decay(weight_decay);
    return torch::optim::OptimizerParamGroup(std::move(parameters), std::move(adamw));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.push_back(group(std::move(decayed), options.weight_decay));
  groups.push_back(group(std::move(others), 0));
  return groups;
}

class ReferenceTrainer : public Trainer {
 public:
  ReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options)
      : options_(options),
        model_(std::move(model)),
        parameters_(model_->parameters()),
        optimizer_(Groups(*model_, options), torch::optim::AdamWOptions(options.lr)) {}

  int rank() const override { return 0; }

  absl::StatusOr<std::optional<Batch>> Begin() override {
    if (updates_ == options_.steps) return std::optional<Batch>();
    batch_.more = true;
    batch_.step = updates_ + 1;
    batch_.micro = static_cast<int>(micro_);
    batch_.micros = static_cast<int>(options_.accumulation);
    batch_.samples = ShareOf(options_.global_batch, 1, 0, options_.accumulation, micro_);
    return std::optional<Batch>(batch_);
  }

  absl::StatusOr<StepInfo> Step(const at::Tensor& loss) override try {
    if (loss.defined()) {
      // Micro-batches may differ in size: each counts by its samples, so that the sum is the mean over the
      // whole batch.
      const double weight = static_cast<double>(batch_.samples.size()) / options_.global_batch;
      (batch_.samples.size() == options_.global_batch ? loss : loss * weight).backward();
      loss_ += loss.item<double>() * weight;
    }
    StepInfo info;
    if (++micro_ < options_.accumulation) return info;
    info.complete = true;
    const double limit = options_.clip > 0 ? options_.clip : std::numeric_limits<double>::infinity();
    info.grad_norm = torch::nn::utils::clip_grad_norm_(parameters_, limit);
    info.skipped = !std::isfinite(info.grad_norm);
    if (!info.skipped) optimizer_.step();
    for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    info.step = ++updates_;
    info.loss = std::exchange(loss_, 0);
    info.epoch = 1;
    micro_ = 0;
    return info;
  } catch (...) {
    return StatusOfException();
  }

  absl::Status Save(const std::string& path) override try {
    std::vector<std::pair<std::string, at::Tensor>> moments;
    if (options_.save_optimizer) {
      for (const auto& item : model_->named_parameters()) {
        const auto found = optimizer_.state().find(c10::guts::to_string(item.value().unsafeGetTensorImpl()));
        if (found == optimizer_.state().end()) continue;  // no step was made
        const auto& state = static_cast<const torch::optim::AdamWParamState&>(*found->second);
        moments.emplace_back(absl::StrCat("exp_avg/", item.key()), state.exp_avg());
        moments.emplace_back(absl::StrCat("exp_avg_sq/", item.key()), state.exp_avg_sq());
      }
    }
    return SaveWeights(*model_, path, moments);
  } catch (...) {
    return StatusOfException();
  }

 private:
  const TrainOptions options_;
  const std::shared_ptr<Gpt> model_;
  std::vector<at::Tensor> parameters_;
  torch::optim::AdamW optimizer_;
  Batch batch_;
  uint64_t updates_ = 0;
  int64_t micro_ = 0;
  double loss_ = 0;  // of the micro-batches so far
};

}  // namespace

std::unique_ptr<Trainer> MakeReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options) {
  return std::make_unique<ReferenceTrainer>(std::move(model), options);
}

}  // namespace sherd::examples

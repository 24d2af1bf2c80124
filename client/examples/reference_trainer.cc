#include "client/examples/reference_trainer.h"

#include <ATen/ATen.h>
#include <torch/nn/utils/clip_grad.h>

#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/examples/gpt_config.h"
#include "client/examples/optimizer_choice.h"
#include "client/examples/reference_optimizer.h"
#include "client/examples/torch_errors.h"
#include "client/examples/weights.h"

namespace sherd::examples {
namespace {

std::vector<ReferenceGroup> Groups(const Gpt& model, const TrainOptions& options) {
  std::vector<ReferenceGroup> groups = {{{}, ChooseOptimizer(options, options.weight_decay)},
                                        {{}, ChooseOptimizer(options, 0)}};
  for (const auto& item : model.named_parameters()) {
    groups[IsDecayed(item.key()) ? 0 : 1].parameters.push_back(item.value());
  }
  return groups;
}

class ReferenceTrainer : public Trainer {
 public:
  ReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options)
      : options_(options),
        model_(std::move(model)),
        parameters_(model_->parameters()),
        optimizer_(MakeReferenceOptimizer(Groups(*model_, options))),
        schedule_(ChooseSchedule(options, options.steps).value()) {}

  int rank() const override { return 0; }

  absl::StatusOr<std::optional<Batch>> Begin() override {
    if (steps_ == options_.steps) return std::optional<Batch>();
    batch_.more = true;
    batch_.step = steps_ + 1;
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
    info.lr = schedule_.has_value() ? schedule_->Rate(updates_, options_.lr) : options_.lr;
    for (int group : {0, 1}) optimizer_->SetRate(group, info.lr);
    if (!info.skipped) optimizer_->Step();
    updates_ += info.skipped ? 0 : 1;
    for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    info.step = ++steps_;
    info.loss = std::exchange(loss_, 0);
    info.epoch = 1;
    micro_ = 0;
    return info;
  } catch (...) {
    return StatusOfException();
  }

  absl::Status Save(const std::string& path) override try {
    std::vector<std::pair<std::string, at::Tensor>> planes;
    const kernels::OptimizerInfo& info = *kernels::FindOptimizer(options_.optimizer);
    if (options_.save_optimizer) {
      for (const auto& item : model_->named_parameters()) {
        const std::vector<at::Tensor> state = optimizer_->State(item.value());
        for (size_t i = 0; i < state.size(); ++i) {
          planes.emplace_back(absl::StrCat(info.plane_names[i], "/", item.key()), state[i]);
        }
      }
    }
    return SaveWeights(*model_, path, planes);
  } catch (...) {
    return StatusOfException();
  }

 private:
  const TrainOptions options_;
  const std::shared_ptr<Gpt> model_;
  std::vector<at::Tensor> parameters_;
  const std::unique_ptr<ReferenceOptimizer> optimizer_;
  const std::optional<Schedule> schedule_;
  Batch batch_;
  uint64_t steps_ = 0, updates_ = 0;  // a skipped step makes no update
  int64_t micro_ = 0;
  double loss_ = 0;  // of the micro-batches so far
};

}  // namespace

std::unique_ptr<Trainer> MakeReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options) {
  return std::make_unique<ReferenceTrainer>(std::move(model), options);
}

}  // namespace sherd::examples

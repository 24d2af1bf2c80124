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

at::ScalarType TorchType(DType dtype) {
  return dtype == DType::kFloat32 ? at::kFloat : dtype == DType::kBFloat16 ? at::kBFloat16 : at::kHalf;
}

// The fp32 tensors that the optimizer updates, in the order of the model's parameters: those themselves, or
// with a 16-bit computation masters, of which the model has rounded copies from now on.
std::vector<at::Tensor> Masters(Gpt& model, DType compute) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> masters;
  for (at::Tensor& parameter : model.parameters()) {
    masters.push_back(parameter);
    if (compute == DType::kFloat32) continue;
    masters.back() = parameter.detach().clone().requires_grad_(true);
    parameter.set_data(parameter.detach().to(TorchType(compute)));
  }
  return masters;
}

std::vector<ReferenceGroup> Groups(const Gpt& model, const std::vector<at::Tensor>& masters,
                                   const TrainOptions& options) {
  std::vector<ReferenceGroup> groups = {{{}, ChooseOptimizer(options, options.weight_decay, true)},
                                        {{}, ChooseOptimizer(options, 0, false)}};
  size_t i = 0;
  for (const std::string& name : model.named_parameters().keys()) {
    groups[IsDecayed(name) ? 0 : 1].parameters.push_back(masters[i++]);
  }
  return groups;
}

class ReferenceTrainer : public Trainer {
 public:
  ReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options)
      : options_(options),
        model_(std::move(model)),
        parameters_(model_->parameters()),
        masters_(Masters(*model_, options.compute)),
        optimizer_(MakeReferenceOptimizer(Groups(*model_, masters_, options))),
        loss_scale_spec_(options.loss_scale.value_or(options.compute == DType::kFloat16 ? DynamicLossScale()
                                                                                        : LossScaleSpec())),
        loss_scale_(FirstLossScale(loss_scale_spec_)),
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
      const double factor = weight * loss_scale_.scale;
      (factor == 1 ? loss : loss * factor).backward();
      SumGradients();
      loss_ += loss.item<double>() * weight;
    }
    StepInfo info;
    if (++micro_ < options_.accumulation) return info;
    info.complete = true;
    info.loss_scale = loss_scale_.scale;
    Unscale();
    const double limit = options_.clip > 0 ? options_.clip : std::numeric_limits<double>::infinity();
    info.grad_norm = ::torch::nn::utils::clip_grad_norm_(masters_, limit);
    info.skipped = !std::isfinite(info.grad_norm);
    info.lr = schedule_.has_value() ? schedule_->Rate(updates_, options_.lr) : options_.lr;
    const OptimizerKind kind = kernels::FindOptimizer(options_.optimizer)->kind;
    const auto betas = schedule_.has_value() ? schedule_->Betas(updates_, kind) : absl::nullopt;
    for (int group : {0, 1}) {
      optimizer_->SetRate(group, info.lr);
      if (betas.has_value()) optimizer_->SetBetas(group, betas->first, betas->second);
    }
    if (!info.skipped) optimizer_->Step();
    loss_scale_ = NextLossScale(loss_scale_spec_, loss_scale_, info.skipped);
    if (loss_scale_.floor != 0) return absl::FailedPreconditionError(FloorMessage(loss_scale_));
    info.skipped_steps = loss_scale_.skipped;
    updates_ += info.skipped ? 0 : 1;
    for (at::Tensor& master : masters_) master.mutable_grad().reset();
    RoundMasters();
    info.step = ++steps_;
    info.loss = std::exchange(loss_, 0);
    info.epoch = 1;
    micro_ = 0;
    return info;
  } catch (...) {
    return StatusOfException();
  }

  absl::Status Save(const std::string& path) override try {
    WeightList tensors;
    const kernels::OptimizerInfo& info = *kernels::FindOptimizer(options_.optimizer);
    size_t next = 0;
    for (const std::string& name : model_->named_parameters().keys()) {
      const at::Tensor& master = masters_[next++];
      tensors.emplace_back(name, master);
      if (!options_.save_optimizer) continue;
      const std::vector<at::Tensor> state = optimizer_->State(master);
      for (size_t i = 0; i < state.size(); ++i)
        tensors.emplace_back(absl::StrCat(info.plane_names[i], "/", name), state[i]);
    }
    return SaveTensors(tensors, path);
  } catch (...) {
    return StatusOfException();
  }

 private:
  bool Mixed() const { return options_.compute != DType::kFloat32; }
  // Micro-batches add up in fp32.
  void SumGradients() {
    if (!Mixed()) return;
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      at::Tensor& grad = parameters_[i].mutable_grad();
      if (!grad.defined()) continue;
      at::Tensor& sum = masters_[i].mutable_grad();
      sum = sum.defined() ? sum + grad : grad.to(at::kFloat);
      grad.reset();
    }
  }
  void Unscale() {
    if (loss_scale_.scale == 1) return;
    at::NoGradGuard no_grad;
    for (at::Tensor& master : masters_) {
      if (master.grad().defined()) master.mutable_grad().div_(loss_scale_.scale);
    }
  }
  void RoundMasters() {
    if (!Mixed()) return;
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].copy_(masters_[i]);
  }

  const TrainOptions options_;
  const std::shared_ptr<Gpt> model_;
  std::vector<at::Tensor> parameters_, masters_;
  const std::unique_ptr<ReferenceOptimizer> optimizer_;
  const LossScaleSpec loss_scale_spec_;
  LossScale loss_scale_;
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

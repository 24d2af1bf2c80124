#include "client/examples/sherd_trainer.h"

#include <unistd.h>

#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/examples/optimizer_choice.h"
#include "client/examples/torch_errors.h"
#include "client/examples/weights.h"
#include "client/session.h"
#include "client/torch/zero_optimizer.h"

namespace sherd::examples {
namespace {

// As in the reference: decay for the blocks' matrices alone.
std::vector<sherd::torch::ParamGroup> Groups(const Gpt& model, const TrainOptions& options) {
  std::vector<sherd::torch::ParamGroup> groups = {
      {"decayed", {}, ChooseOptimizer(options, options.weight_decay)},
      {"others", {}, ChooseOptimizer(options, 0)}};
  for (const std::string& name : model.named_parameters().keys()) {
    groups[IsDecayed(name) ? 0 : 1].parameters.push_back(name);
  }
  return groups;
}

class SherdTrainer : public Trainer {
 public:
  SherdTrainer(std::unique_ptr<Session> session, std::unique_ptr<sherd::torch::ZeroOptimizer> zero,
               std::shared_ptr<Gpt> model, const SamplerState& sampler)
      : session_(std::move(session)), zero_(std::move(zero)), model_(std::move(model)), sampler_(sampler) {}

  ~SherdTrainer() override { zero_->Detach(finished_).IgnoreError(); }

  int rank() const override { return session_->rank(); }

  absl::StatusOr<std::optional<Batch>> Begin() override {
    const Batch batch = zero_->Begin();
    if (!batch.status.ok()) return batch.status;
    finished_ = !batch.more;
    if (finished_) return std::optional<Batch>();
    sampler_.step = batch.step;
    return std::optional<Batch>(batch);
  }

  absl::StatusOr<StepInfo> Step(const at::Tensor& loss) override try {
    if (loss.defined()) zero_->Scale(loss).backward();
    zero_->SetBlob(sampler_.Serialize());
    return zero_->Step(loss);
  } catch (...) {
    return StatusOfException();
  }

  absl::Status Save(const std::string& path) override { return SaveWeights(*model_, path); }

 private:
  const std::unique_ptr<Session> session_;
  const std::unique_ptr<sherd::torch::ZeroOptimizer> zero_;
  const std::shared_ptr<Gpt> model_;
  SamplerState sampler_;
  bool finished_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> MakeSherdTrainer(const std::string& endpoint,
                                                          std::shared_ptr<Gpt> model,
                                                          const TrainOptions& options,
                                                          const SamplerState& sampler) {
  if (endpoint.empty()) {
    return absl::FailedPreconditionError(
        "SHERD_ENDPOINT is not set: start with `sherd run -n 2 -- train_gpt ...`, or give --reference to "
        "train in this process alone");
  }
  SessionOptions where = SessionOptions::FromEnvironment();
  where.endpoints = endpoint;
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Connect(std::move(where));
  if (!session.ok()) return session.status();
  ZeroOptions how;
  how.stage(options.stage).max_grad_norm(options.clip).global_batch(options.global_batch);
  how.accumulation(static_cast<int>(options.accumulation)).steps(options.steps).seed(options.seed);
  how.compute(options.compute).stochastic_rounding(options.stochastic_rounding);
  if (options.communication.has_value()) how.communication(*options.communication);
  if (options.loss_scale.has_value()) how.loss_scale(*options.loss_scale);
  if (options.bucket_elements > 0) how.bucket_elements(options.bucket_elements);
  how.on_wait([rank = (*session)->rank()](double seconds, const std::string& whom) {
    absl::FPrintF(stderr, "train_gpt: rank %d has waited %.0f s for %s\n", rank, seconds, whom);
  });
  absl::StatusOr<std::unique_ptr<sherd::torch::ZeroOptimizer>> zero =
      sherd::torch::ZeroOptimizer::Create(**session, model->named_parameters(), Groups(*model, options), how);
  if (!zero.ok()) return zero.status();
  absl::StatusOr<std::optional<Schedule>> schedule = ChooseSchedule(options, options.steps);
  if (!schedule.ok()) return schedule.status();
  if (schedule->has_value()) (*zero)->SetSchedule(**std::move(schedule));
  if (!(*zero)->blob().empty()) {
    const absl::StatusOr<SamplerState> saved = SamplerState::Parse((*zero)->blob());
    if (!saved.ok()) return saved.status();
    if (absl::Status same = CheckResume(*saved, sampler); !same.ok()) return same;
  }
  return std::make_unique<SherdTrainer>(*std::move(session), *std::move(zero), std::move(model), sampler);
}

}  // namespace sherd::examples

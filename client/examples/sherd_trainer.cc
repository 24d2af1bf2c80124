#include "client/examples/sherd_trainer.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
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
      {"decayed", {}, ChooseOptimizer(options, options.weight_decay, true)},
      {"others", {}, ChooseOptimizer(options, 0, false)}};
  for (const std::string& name : model.named_parameters().keys()) {
    groups[IsDecayed(name) ? 0 : 1].parameters.push_back(name);
  }
  return groups;
}

// Steps before a checkpoint's own in which it is asked for.
constexpr uint64_t kAskAhead = 2;

// What was restored, for people; on rank 0.
void TellRestored(const v1::RestoreReport& r) {
  std::string what = absl::StrCat("the weights of ", r.path());
  if (r.servers() > 0) {
    what = absl::StrFormat("step %d from %s (saved by %d trainers, in %d parts)", r.step(), r.path(),
                           r.world_size(), r.servers());
  }
  absl::FPrintF(stderr, "train_gpt: restored %s: %d tensors, %.1f MB in %.2f s\n", what, r.matched_size(),
                r.bytes() / 1e6, r.duration().seconds() + r.duration().nanos() * 1e-9);
  const auto list = [](const char* what, const auto& names) {
    if (!names.empty()) absl::FPrintF(stderr, "train_gpt: %s: %s\n", what, absl::StrJoin(names, ", "));
  };
  list("not in the checkpoint, begin with initial values", r.missing());
  list("in the checkpoint and not in this model", r.extra());
  list("of another shape, begin with initial values", r.mismatched());
}

class SherdTrainer : public Trainer {
 public:
  SherdTrainer(std::unique_ptr<Session> session, std::unique_ptr<sherd::torch::ZeroOptimizer> zero,
               std::shared_ptr<Gpt> model, const SamplerState& sampler, const TrainOptions& options)
      : session_(std::move(session)),
        zero_(std::move(zero)),
        model_(std::move(model)),
        sampler_(sampler),
        steps_(options.steps),
        save_every_(options.save_every),
        write_name_(options.write_name),
        write_value_(options.write_value),
        write_step_(options.write_step) {
    save_.directory = options.save_checkpoint;
    save_.keep = options.keep;
  }

  ~SherdTrainer() override {
    AwaitSave().IgnoreError();
    zero_->Detach(finished_).IgnoreError();
  }

  int rank() const override { return session_->rank(); }

  absl::StatusOr<std::optional<Batch>> Begin() override {
    const Batch batch = zero_->Begin();
    if (!batch.status.ok()) return batch.status;
    if (batch.left) absl::FPrintF(stderr, "train_gpt: rank %d leaves, the job goes on without it\n", rank());
    finished_ = !batch.more;
    if (finished_) {
      if (absl::Status saved = EndSaves(); !saved.ok()) return saved;
      return std::optional<Batch>();
    }
    sampler_.step = batch.step;
    if (rank() == 0 && batch.micro == 0 && batch.step == write_step_) {
      if (absl::Status written = Write(); !written.ok()) return written;
    }
    if (!save_.directory.empty() && rank() == 0 && batch.micro == 0) BeginSave(batch.step);
    return std::optional<Batch>(batch);
  }

  absl::StatusOr<StepInfo> Step(const at::Tensor& loss) override try {
    if (loss.defined()) zero_->Scale(loss).backward();
    zero_->SetBlob(sampler_.Serialize());
    return zero_->Step(loss);
  } catch (...) {
    return StatusOfException();
  }

  // The masters: what the model computes with in 16 bits is rounded. Then, and in stage 3, a host of several
  // has those of its own share alone.
  absl::Status Save(const std::string& path) override try {
    const runtime::JobMemory& memory = session_->memory();
    const bool here =
        !memory.place().several() || (memory.compute() == nullptr && memory.gather() == nullptr);
    WeightList masters;
    std::vector<absl::Span<float>> room;
    for (const TensorInfo& t : memory.layout().tensors()) {
      float* const at = memory.plane(0) + t.blocks.begin * kBlockElements;
      masters.emplace_back(t.spec.name, here ? at::from_blob(at, t.spec.shape, at::kFloat)
                                             : at::empty(t.spec.shape, at::kFloat));
      room.push_back(absl::MakeSpan(masters.back().second.data_ptr<float>(), t.numel));
    }
    if (!here) {
      if (absl::Status read = session_->ReadMasters(room).status(); !read.ok()) return read;
    }
    return SaveTensors(masters, path);
  } catch (...) {
    return StatusOfException();
  }

 private:
  absl::Status Write() try {
    const TensorInfo* t = session_->memory().layout().Find(write_name_);
    return zero_->Write(write_name_, at::full(t == nullptr ? std::vector<int64_t>() : t->spec.shape,
                                              write_value_, at::kFloat));
  } catch (...) {
    return StatusOfException();
  }

  // Asks for the next checkpoint as long before its step as the servers need to make room for it.
  void BeginSave(uint64_t step) {
    uint64_t next = steps_;
    if (save_every_ > 0) next = std::min(steps_, (step + save_every_ - 1) / save_every_ * save_every_);
    if (next <= asked_ || next > step + kAskAhead) return;
    // Every checkpoint that was asked for is made: the one before must be whole, if this is the last moment.
    if (pending_ != nullptr && !pending_->done() && next > step) return;
    TellSave(AwaitSave());
    pending_ = zero_->SaveWithStep(save_, next);
    asked_ = next;
  }
  // The checkpoint that is being written, if there is one.
  absl::Status AwaitSave() {
    if (pending_ == nullptr) return absl::OkStatus();
    const absl::StatusOr<SavedAs> saved = std::exchange(pending_, nullptr)->Wait();
    if (saved.ok()) {
      absl::FPrintF(stderr, "train_gpt: saved step %d as %s (%.1f MB in %.2f s)\n", saved->step, saved->path,
                    saved->bytes / 1e6, absl::ToDoubleSeconds(saved->duration));
      saved_ = saved->step;
    }
    return saved.status();
  }
  // There is a checkpoint of the last step when training ends. One that was asked for with that step is lost
  // if its trainer died before the cut: then its successor makes it of the state as it is.
  absl::Status EndSaves() {
    if (absl::Status s = AwaitSave(); !s.ok() || save_.directory.empty() || rank() != 0) return s;
    if (saved_ == steps_) return absl::OkStatus();
    pending_ = zero_->Save(save_);
    return AwaitSave();
  }
  // Training is worth more than a checkpoint: only that of the last step may fail it.
  static void TellSave(const absl::Status& status) {
    if (!status.ok()) absl::FPrintF(stderr, "train_gpt: not saved: %s\n", status.message());
  }

  const std::unique_ptr<Session> session_;
  const std::unique_ptr<sherd::torch::ZeroOptimizer> zero_;
  const std::shared_ptr<Gpt> model_;
  SamplerState sampler_;
  const uint64_t steps_, save_every_;
  const std::string write_name_;
  const float write_value_;
  const uint64_t write_step_;  // 0: none
  SaveOptions save_;
  std::shared_ptr<PendingSave> pending_;
  uint64_t asked_ = 0;  // the step of the last one
  uint64_t saved_ = 0;  // the step of the last that was made
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
  where.restore = {options.restore, options.restore_tag, options.weights_only, options.partial};
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Connect(std::move(where));
  if (!session.ok()) return session.status();
  ZeroOptions how;
  how.stage(options.stage).max_grad_norm(options.clip).global_batch(options.global_batch);
  how.accumulation(static_cast<int>(options.accumulation)).steps(options.steps).seed(options.seed);
  how.virtual_ranks(options.virtual_ranks);
  how.shard_ranks(options.shard_ranks);
  how.compute(options.compute).stochastic_rounding(options.stochastic_rounding);
  if (options.communication.has_value()) how.communication(*options.communication);
  if (options.loss_scale.has_value()) how.loss_scale(*options.loss_scale);
  how.stage3(options.stage3);
  if (options.bucket_elements > 0) how.bucket_elements(options.bucket_elements);
  how.on_wait([rank = (*session)->rank()](double seconds, const std::string& whom) {
    absl::FPrintF(stderr, "train_gpt: rank %d has waited %.0f s for %s\n", rank, seconds, whom);
  });
  absl::StatusOr<std::unique_ptr<sherd::torch::ZeroOptimizer>> zero =
      sherd::torch::ZeroOptimizer::Create(**session, model->named_parameters(), Groups(*model, options), how,
                                          sherd::torch::NamedTensors(), model->sharded_blocks());
  if (!zero.ok()) return zero.status();
  absl::StatusOr<std::optional<Schedule>> schedule = ChooseSchedule(options, options.steps);
  if (!schedule.ok()) return schedule.status();
  if (schedule->has_value()) (*zero)->SetSchedule(**std::move(schedule));
  if (!(*session)->restored().path().empty()) TellRestored((*session)->restored());
  if (!(*zero)->blob().empty()) {
    const absl::StatusOr<SamplerState> saved = SamplerState::Parse((*zero)->blob());
    if (!saved.ok()) return saved.status();
    if (absl::Status same = CheckResume(*saved, sampler); !same.ok()) return same;
  }
  return std::make_unique<SherdTrainer>(*std::move(session), *std::move(zero), std::move(model), sampler,
                                        options);
}

}  // namespace sherd::examples

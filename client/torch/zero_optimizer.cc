#include "client/torch/zero_optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/host_units.h"
#include "client/step_writer.h"
#include "client/torch/gradient_outbox.h"
#include "client/torch/shared_buffers.h"
#include "client/torch/shared_parameters.h"
#include "client/torch/tensor_checks.h"
#include "core/layout.h"

namespace sherd::torch {
namespace {

// Units that are readable while this lives.
struct Gathered {
  ~Gathered() {
    for (const int unit : units) window->Release(unit);
  }
  std::shared_ptr<client::ParameterWindow> window;
  std::vector<int> units;
};

std::string ShapeText(at::IntArrayRef shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

}  // namespace

class ZeroOptimizer::Impl {
 public:
  Impl(Session& session, ZeroOptions options) : session_(session), options_(std::move(options)) {}

  absl::Status Init(const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
                    const NamedTensors& buffers, const Blocks& blocks);
  Batch Begin();
  absl::StatusOr<StepInfo> Step(const at::Tensor& loss);
  absl::Status Write(const std::string& name, const at::Tensor& value);
  at::Tensor Scale(const at::Tensor& loss) const;
  absl::StatusOr<std::shared_ptr<void>> Gather(const std::vector<std::string>& names);

  Session& session_;
  ZeroOptions options_;
  std::vector<GroupScalars> scalars_;
  std::optional<Schedule> schedule_;
  std::string next_blob_, committed_blob_;
  std::string committed_packed_;  // with what PackBlob adds
  std::unique_ptr<client::StepWriter> writer_;
  std::unique_ptr<GradientOutbox> outbox_;
  std::shared_ptr<client::ParameterWindow> window_;  // stage 3
  std::shared_ptr<PendingSave> save_;                // to be cut by step save_step_
  uint64_t save_step_ = 0;

 private:
  // Stage 3: from where parameters are there only while they are gathered.
  absl::StatusOr<std::unique_ptr<client::UnitSource>> Units();
  absl::Status OpenWindow(const std::vector<bool>& persistent, const Blocks& blocks);
  absl::Status InitialiseJob();
  // The blob of a STEP record: what the outbox expects, then the user's.
  std::string PackBlob() const { return absl::StrCat(outbox_->PackExpected(), next_blob_); }
  absl::Status UnpackBlob(absl::string_view packed);
  bool delivering() const { return options_.stage() >= 2 || micro_ + 1 == share_.micros(); }
  double ScaleOf(const SampleRange& samples) const;
  // Takes up what Resume or Join found: where the job stands.
  absl::Status Enter(const client::StepWriter::Start& start);
  // As many ranks as the step in hand has.
  void FollowWorld();
  // The step in hand was given up: everything of it is forgotten, and Begin hands it out again.
  absl::StatusOr<StepInfo> StartOver();
  void ForgetStep();

  client::StepWriter::Options waits_;
  std::vector<SharedParameter> params_;
  SharedBuffers buffers_;
  std::vector<uint64_t> imports_;
  int micro_ = 0;
  WorldShare share_{WorldShare::Rules()};
  bool joining_ = false;  // a rank that the job has not taken in yet
  bool begun_ = false;    // Begin was called and Step was not
  SampleRange samples_;   // of this micro-batch
  double nominal_ = 1;
  double scale_ = 0;  // that gradients now in `.grad` count with
  double weight_ = 0, loss_sum_ = 0;
  uint64_t sample_count_ = 0, loss_samples_ = 0;
  client::ParameterWindow::Stats counted_;  // as the last step left them
  absl::Status ended_;                      // why training can not go on
};

absl::Status ZeroOptimizer::Impl::Init(const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
                                       const NamedTensors& buffers, const Blocks& blocks) {
  absl::StatusOr<JobDeclaration> declared =
      DeclareJob(parameters, groups, options_, session_.world_size(), buffers, &buffers_, blocks);
  if (!declared.ok()) return declared.status();
  // What a checkpoint leaves out is rank 0's.
  declared->spec.gather.initial_shares &= !session_.restoring_partially();
  params_ = std::move(declared->parameters);
  scalars_ = std::move(declared->scalars);
  absl::Status status = session_.Attach(declared->spec);
  if (!status.ok()) return status;
  share_ = WorldShare(ShareRules(options_, session_.memory().spec().world_size));
  nominal_ = session_.memory().spec().nominal_samples;
  const Layout& layout = session_.memory().layout();
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;
  for (SharedParameter& p : params_) {
    p.index = layout.Find(p.name)->index;
    names.push_back(p.name);
    tensors.push_back(p.tensor);
  }
  outbox_ = std::make_unique<GradientOutbox>(layout, names, tensors);
  if (status = InitialiseJob(); !status.ok()) return status;
  const int busy = session_.world_size() + session_.memory().control().Newest()->servers;
  waits_.overlap = busy <= runtime::UsableCores();
  waits_.spin = runtime::SpinPolicy::ForHost(busy, runtime::UsableCores());
  if (options_.on_wait()) {
    waits_.on_wait = [f = options_.on_wait()](absl::Duration d, const std::string& whom) {
      f(absl::ToDoubleSeconds(d), whom);
    };
  }
  if (status = OpenWindow(declared->persistent, blocks); !status.ok()) return status;
  writer_ = std::make_unique<client::StepWriter>(&session_.memory(), Rank(session_.rank()), waits_);
  absl::StatusOr<client::StepWriter::Start> start = writer_->Resume();
  if (!start.ok()) return start.status();
  outbox_->Open(writer_.get(), session_.shared_memory());
  joining_ = start->joining;
  return joining_ ? absl::OkStatus() : Enter(*start);
}

absl::Status ZeroOptimizer::Impl::Enter(const client::StepWriter::Start& start) {
  if (absl::Status unpacked = UnpackBlob(start.blob); !unpacked.ok()) return unpacked;
  next_blob_ = committed_blob_;
  if (writer_->loss_scale().floor != 0) {
    ended_ = absl::FailedPreconditionError(FloorMessage(writer_->loss_scale()));
  }
  if (const uint64_t next = start.next.step.value(); next > 1 || session_.restoring())
    buffers_.Take(session_.memory(), sherd::Step(next - 1));  // running statistics as they were committed
  joining_ = false;
  FollowWorld();
  return absl::OkStatus();
}

void ZeroOptimizer::Impl::FollowWorld() {
  share_.Enter(writer_->world_size(), session_.rank());
  if (options_.stage() >= 2) writer_->set_parts(share_.micros());
}

void ZeroOptimizer::Impl::ForgetStep() {
  micro_ = 0;
  weight_ = loss_sum_ = scale_ = 0;
  sample_count_ = loss_samples_ = 0;
  outbox_->ClearHasGrad();
}

absl::StatusOr<StepInfo> ZeroOptimizer::Impl::StartOver() {
  if (begun_ && window_ != nullptr) window_->EndPass();
  outbox_->GiveUp();
  ForgetStep();
  begun_ = false;
  if (absl::Status over = writer_->StartOver(); !over.ok()) return over;
  if (absl::Status unpacked = UnpackBlob(std::string(committed_packed_)); !unpacked.ok()) return unpacked;
  // Running statistics as the last step left them.
  if (const uint64_t step = writer_->current().step.value(); step > 1) {
    buffers_.Take(session_.memory(), sherd::Step(step - 1));
  }
  FollowWorld();
  StepInfo info;
  info.aborted = true;
  return info;
}

absl::Status ZeroOptimizer::Impl::InitialiseJob() {
  if (session_.writes_initial() && (!session_.restoring() || session_.restoring_partially())) {
    if (absl::Status written = WriteInitialValues(session_, params_); !written.ok()) return written;
  }
  if (session_.writes_initial() && !session_.must_initialise()) {
    if (absl::Status written = session_.FinishInitialShare(); !written.ok()) return written;
  }
  if (session_.must_initialise()) {
    buffers_.Publish(session_.memory(), sherd::Step(session_.attached_step()));
    if (absl::Status committed = session_.CommitInitial(); !committed.ok()) return committed;
    return absl::OkStatus();
  }
  return session_.WaitInitialized();
}

absl::StatusOr<std::unique_ptr<client::UnitSource>> ZeroOptimizer::Impl::Units() {
  if (session_.memory().gather() == nullptr) return client::SharedUnits(session_.shared_memory());
  client::HostUnitsOptions how;
  how.rank = Rank(session_.rank());
  how.spin = waits_.spin;
  how.on_wait = waits_.on_wait;
  return client::HostUnits(session_.shared_memory(), std::move(how));
}

absl::Status ZeroOptimizer::Impl::OpenWindow(const std::vector<bool>& persistent, const Blocks& blocks) {
  if (options_.stage() == 3) {
    absl::StatusOr<std::unique_ptr<client::UnitSource>> units = Units();
    if (!units.ok()) return units.status();
    absl::StatusOr<std::unique_ptr<client::ParameterWindow>> window = client::ParameterWindow::Create(
        session_.memory().layout(), persistent, options_.stage3().prefetch, *std::move(units));
    if (!window.ok()) return window.status();
    window_ = *std::move(window);
  }
  OpenBlocks(blocks, session_.memory().layout(), params_, window_);
  MapParameters(session_, window_, &params_);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<void>> ZeroOptimizer::Impl::Gather(const std::vector<std::string>& names) {
  std::set<int> units;
  for (const std::string& name : names) {
    const TensorInfo* info = session_.memory().layout().Find(name);
    if (info == nullptr) return absl::NotFoundError(absl::StrCat("there is no parameter ", name));
    units.insert(info->unit);
  }
  for (const SharedParameter& p : params_) {
    if (names.empty()) units.insert(session_.memory().layout().tensors()[p.index].unit);
  }
  auto gathered = std::make_shared<Gathered>();
  gathered->window = window_;
  for (const int unit : units) {
    if (window_ == nullptr) break;
    if (absl::Status there = window_->Gather(unit); !there.ok()) return there;
    gathered->units.push_back(unit);
  }
  return std::shared_ptr<void>(std::move(gathered));
}

double ZeroOptimizer::Impl::ScaleOf(const SampleRange& samples) const {
  return options_.global_batch() == 0 ? 1.0 : static_cast<double>(samples.size()) / nominal_;
}

Batch ZeroOptimizer::Impl::Begin() {
  Batch batch;
  batch.status = ended_.ok() ? outbox_->error() : ended_;
  if (batch.status.ok() && joining_) {
    absl::StatusOr<client::StepWriter::Start> start = writer_->Join(session_.incarnation());
    batch.left = absl::IsCancelled(start.status());
    if (batch.left) return batch;
    batch.status = start.ok() ? Enter(*start) : start.status();
    batch.joined = batch.status.ok();
  }
  batch.left = batch.status.ok() && !writer_->in_world();
  const uint64_t step = writer_->current().step.value();
  if (!batch.status.ok() || batch.left || (micro_ == 0 && options_.steps() > 0 && step > options_.steps()))
    return batch;
  batch.more = true;
  batch.step = step;
  batch.micro = micro_;
  batch.micros = share_.micros();
  batch.samples = share_.Samples(micro_);
  batch.global_batch = share_.global_batch();
  batch.world_size = share_.world_size();
  batch.rank = share_.rank();
  batch.epoch = session_.epoch();
  batch.seed = share_.Seed(step, micro_);
  samples_ = batch.samples;
  begun_ = true;
  const double scale = ScaleOf(samples_);
  if (scale > 0) {
    // What earlier micro-batches left in `.grad` was a mean over their samples; from now on it counts with
    // this one's weight.
    if (scale_ > 0 && scale_ != scale) outbox_->Rescale(scale_ / scale);
    scale_ = scale;
    weight_ += scale;
  }
  if (delivering()) outbox_->BeginPart(static_cast<float>(scale_));
  if (window_ != nullptr) window_->BeginPass(/*last=*/micro_ + 1 == share_.micros());
  return batch;
}

absl::Status ZeroOptimizer::Impl::UnpackBlob(absl::string_view packed) {
  committed_packed_ = std::string(packed);
  absl::Status status = outbox_->UnpackExpected(&packed);
  committed_blob_ = std::string(packed);
  return status;
}

absl::StatusOr<StepInfo> ZeroOptimizer::Impl::Step(const at::Tensor& loss) {
  if (!begun_) return absl::FailedPreconditionError("Step without Begin");
  if (absl::IsAborted(outbox_->error())) return StartOver();
  if (!outbox_->error().ok()) return outbox_->error();
  begun_ = false;
  if (window_ != nullptr) window_->EndPass();
  const uint64_t n = options_.global_batch() > 0 ? samples_.size() : 1;
  sample_count_ += n;
  if (loss.defined() && n > 0) {
    loss_sum_ += loss.item<double>() * static_cast<double>(n);
    loss_samples_ += n;
  }
  if (absl::Status homes = CheckHomes(params_); !homes.ok()) return homes;
  if (outbox_->in_part()) {
    const absl::Status finished = outbox_->FinishPart();
    if (absl::IsAborted(finished)) return StartOver();
    if (!finished.ok()) return finished;
  }
  outbox_->EndMicroBatch(n > 0);
  StepInfo info;
  if (++micro_ < share_.micros()) return info;
  const absl::Status late = outbox_->DeliverLate(static_cast<float>(scale_));
  if (absl::IsAborted(late)) return StartOver();
  if (!late.ok()) return late;
  client::StepWriter::Record record;
  record.weight = weight_;
  record.samples = sample_count_;
  record.loss = loss_samples_ > 0 ? loss_sum_ / static_cast<double>(loss_samples_) : 0;
  record.max_grad_norm = options_.max_grad_norm();
  record.groups = scalars_;
  // As committed by the step before, not as counted by this process.
  const sherd::Step before(writer_->current().step.value() - 1);
  if (schedule_.has_value()) {
    schedule_->SetScalars(session_.memory().updates(before), session_.memory().spec().optimizer,
                          &record.groups);
  }
  for (GroupScalars& group : record.groups) group[kLr] *= share_.rate_factor();
  record.has_grad = outbox_->has_grad();
  record.imports = imports_;
  if (session_.rank() == 0) buffers_.Publish(session_.memory(), writer_->current().step);
  const std::string packed = PackBlob();
  info.loss_scale = writer_->loss_scale().scale;
  if (save_ != nullptr && writer_->current().step.value() >= save_step_) {
    // Its error is told by its own Wait.
    save_->WaitCut().IgnoreError();
    save_.reset();
  }
  absl::StatusOr<Verdict> verdict = writer_->Finish(record, packed);
  if (absl::IsAborted(verdict.status())) return StartOver();
  if (!verdict.ok()) return verdict.status();
  const int world_size = share_.world_size();
  ForgetStep();
  FollowWorld();
  imports_.clear();
  if (verdict->kind == VerdictKind::kReject) {
    // The next attempt begins where this one did.
    if (absl::Status unpacked = UnpackBlob(std::string(committed_packed_)); !unpacked.ok()) return unpacked;
    return absl::InvalidArgumentError(verdict->reason);
  }
  committed_blob_ = next_blob_;
  committed_packed_ = packed;
  // Somebody else changed the values: a graph built before must not be used any more.
  for (SharedParameter& p : params_) p.tensor.unsafeGetTensorImpl()->bump_version();
  if (window_ != nullptr) {
    if (absl::Status there = window_->Renew(); !there.ok()) return there;
  }
  if (verdict->loss_scale.floor != 0) return ended_ = absl::FailedPreconditionError(verdict->reason);
  info.complete = true;
  info.skipped = verdict->kind == VerdictKind::kSkip;
  info.step = verdict->id.step.value();
  info.epoch = session_.epoch();
  info.world_size = world_size;
  info.rank = session_.rank();
  info.loss = verdict->loss;
  info.lr = record.groups[0][kLr];
  info.grad_norm = verdict->grad_norm;
  info.samples = verdict->samples;
  info.skipped_steps = verdict->loss_scale.skipped;
  if (window_ != nullptr) {
    const client::ParameterWindow::Stats now = window_->stats();
    info.gathers = now.gathers - counted_.gathers;
    info.prefetch_hits = now.hits - counted_.hits;
    info.peak_parameter_bytes = now.peak_live_bytes;
    counted_ = now;
  }
  return info;
}

at::Tensor ZeroOptimizer::Impl::Scale(const at::Tensor& loss) const {
  const double scale = writer_->loss_scale().scale;
  return scale == 1 ? loss : loss.to(at::kFloat) * scale;
}

absl::Status ZeroOptimizer::Impl::Write(const std::string& name, const at::Tensor& value) {
  const TensorInfo* info = session_.memory().layout().Find(name);
  if (info == nullptr) return absl::NotFoundError(absl::StrCat("there is no parameter ", name));
  if (value.sizes().vec() != info->spec.shape) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " has shape ",
                                                   ShapeText(info->spec.shape), ", the value ",
                                                   ShapeText(value.sizes())));
  }
  if (imports_.size() >= runtime::kMaxStepImports) {
    return absl::ResourceExhaustedError(
        absl::StrCat("more than ", runtime::kMaxStepImports, " writes before one step"));
  }
  const at::Tensor whole = value.detach().to(at::kCPU, at::kFloat).contiguous();
  absl::StatusOr<uint64_t> id = session_.StageWrite(
      {{name, info->spec.shape,
        absl::MakeConstSpan(whole.data_ptr<float>(), static_cast<size_t>(whole.numel()))}});
  if (!id.ok()) return id.status();
  imports_.push_back(*id);
  return absl::OkStatus();
}

// ---------------------------------------------------------------- the public face: exceptions end here

namespace {

template <typename Result, typename Fn>
Result Guarded(Fn fn) {
  try {
    return fn();
  } catch (const c10::Error& e) {
    return absl::InternalError(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ZeroOptimizer>> ZeroOptimizer::Create(
    Session& session, const NamedTensors& parameters, const OptimizerOptions& optimizer,
    const ZeroOptions& options, const NamedTensors& buffers, const Blocks& blocks) {
  return Create(session, parameters, {ParamGroup{"", parameters.keys(), optimizer}}, options, buffers,
                blocks);
}

absl::StatusOr<std::unique_ptr<ZeroOptimizer>> ZeroOptimizer::Create(
    Session& session, const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
    const ZeroOptions& options, const NamedTensors& buffers, const Blocks& blocks) {
  auto impl = std::make_unique<Impl>(session, options);
  absl::Status status =
      Guarded<absl::Status>([&] { return impl->Init(parameters, groups, buffers, blocks); });
  if (!status.ok()) return status;
  return absl::WrapUnique(new ZeroOptimizer(std::move(impl)));
}

ZeroOptimizer::ZeroOptimizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ZeroOptimizer::~ZeroOptimizer() = default;

Batch ZeroOptimizer::Begin() {
  try {
    return impl_->Begin();
  } catch (const std::exception& e) {
    Batch batch;
    batch.status = absl::InternalError(e.what());
    return batch;
  }
}

absl::StatusOr<StepInfo> ZeroOptimizer::Step(const at::Tensor& loss) {
  return Guarded<absl::StatusOr<StepInfo>>([&] { return impl_->Step(loss); });
}

at::Tensor ZeroOptimizer::Scale(const at::Tensor& loss) const { return impl_->Scale(loss); }
double ZeroOptimizer::loss_scale() const { return impl_->writer_->loss_scale().scale; }

GroupScalars& ZeroOptimizer::scalars(int group) { return impl_->scalars_.at(group); }
void ZeroOptimizer::set_lr(double lr) {
  for (GroupScalars& s : impl_->scalars_) s[kLr] = lr;
}
void ZeroOptimizer::SetSchedule(std::optional<Schedule> schedule) { impl_->schedule_ = std::move(schedule); }
void ZeroOptimizer::set_max_grad_norm(double norm) { impl_->options_.max_grad_norm(norm); }
void ZeroOptimizer::SetBlob(std::string blob) { impl_->next_blob_ = std::move(blob); }
const std::string& ZeroOptimizer::blob() const { return impl_->committed_blob_; }
absl::Status ZeroOptimizer::Write(const std::string& name, const at::Tensor& value) {
  return Guarded<absl::Status>([&] { return impl_->Write(name, value); });
}
std::shared_ptr<PendingSave> ZeroOptimizer::Save(const SaveOptions& options) {
  std::shared_ptr<PendingSave> save = impl_->session_.StartSave(options, 0);
  save->WaitCut().IgnoreError();
  return save;
}
std::shared_ptr<PendingSave> ZeroOptimizer::SaveWithStep(const SaveOptions& options, uint64_t step) {
  impl_->save_step_ = step != 0 ? step : impl_->writer_->current().step.value();
  return impl_->save_ = impl_->session_.StartSave(options, impl_->save_step_);
}
absl::Status ZeroOptimizer::Detach(bool finished) { return impl_->session_.Detach(finished); }

absl::StatusOr<std::shared_ptr<void>> ZeroOptimizer::Gather(const std::vector<std::string>& names) {
  return impl_->Gather(names);
}

client::ParameterWindow::Stats ZeroOptimizer::gathers() const {
  return impl_->window_ == nullptr ? client::ParameterWindow::Stats() : impl_->window_->stats();
}

ZeroOptimizer::Traffic ZeroOptimizer::traffic() const {
  return {impl_->outbox_->staged_bytes(), impl_->writer_->staging_bytes(), impl_->writer_->ring_growths()};
}

}  // namespace sherd::torch

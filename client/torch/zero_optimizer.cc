#include "client/torch/zero_optimizer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/step_writer.h"
#include "client/torch/staging_allocator.h"
#include "client/torch/stray_write.h"
#include "core/layout.h"
#include "kernels/stream_copy.h"

namespace sherd::torch {
namespace {

// Copies shorter than this stay in the cache; longer ones would only push out what backward needs.
constexpr int64_t kStreamElements = 64 << 10;

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::string ShapeText(at::IntArrayRef shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::Status CheckTensor(const std::string& name, const at::Tensor& t) {
  if (!t.defined()) return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is undefined"));
  if (t.scalar_type() != at::kFloat || !t.device().is_cpu() || t.layout() != at::kStrided) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is ", c10::toString(t.scalar_type()),
                                                   " on ", t.device().str(),
                                                   "; parameters must be dense fp32 on the CPU"));
  }
  return absl::OkStatus();
}

const char* SafetensorsType(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "F32";
    case at::kDouble:
      return "F64";
    case at::kLong:
      return "I64";
    case at::kInt:
      return "I32";
    case at::kShort:
      return "I16";
    case at::kChar:
      return "I8";
    case at::kByte:
      return "U8";
    case at::kBool:
      return "BOOL";
    case at::kHalf:
      return "F16";
    case at::kBFloat16:
      return "BF16";
    default:
      return nullptr;
  }
}

}  // namespace

class ZeroOptimizer::Impl {
 public:
  Impl(Session& session, ZeroOptions options) : session_(session), options_(std::move(options)) {}
  ~Impl() {
    if (staging_ != nullptr) staging_->Close();
  }

  absl::Status Init(const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
                    const NamedTensors& buffers);
  Batch Begin();
  absl::StatusOr<StepInfo> Step(const at::Tensor& loss);
  absl::Status Write(const std::string& name, const at::Tensor& value);

  Session& session_;
  ZeroOptions options_;
  std::vector<GroupScalars> scalars_;
  std::string next_blob_, committed_blob_;
  std::string committed_packed_;  // with what PackBlob adds
  int64_t staged_bytes_ = 0;
  std::unique_ptr<client::StepWriter> writer_;

 private:
  struct Param {
    std::string name;
    at::Tensor tensor;
    int index = 0;  // in the layout
    int unit = 0;
    int64_t offset = 0;  // elements, in its unit
    std::shared_ptr<::torch::autograd::Node> accumulator;
    const void* home = nullptr;
    int arrivals = 0;      // in this micro-batch
    int expected = 1;      // arrivals in the last one
    bool staged = false;   // in the open part
    bool pending = false;  // `.grad` holds a gradient that has not left
  };
  struct Unit {
    std::vector<int> params;
    int missing = 0;         // params that are expected and have not arrived
    bool delivered = false;  // in the open part
  };
  struct Arrival : ::torch::autograd::FunctionPostHook {
    Arrival(Impl* impl, int param) : impl(impl), param(param) {}
    ::torch::autograd::variable_list operator()(const ::torch::autograd::variable_list& outputs,
                                                const ::torch::autograd::variable_list& inputs) override {
      impl->Arrived(param, inputs.empty() ? nullptr : &inputs[0]);
      return outputs;
    }
    Impl* const impl;
    const int param;
  };

  absl::StatusOr<JobSpec> MakeSpec(const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
                                   const NamedTensors& buffers);
  absl::Status PlaceInSharedMemory();
  void HookGradients();
  void BeginPart();
  // Lets large gradients be computed in staging.
  void OfferStaging();
  // A gradient was accumulated into a parameter's `.grad`: `*from`, which autograd lets go of
  // after this.
  void Arrived(int param, const at::Tensor* from);
  void Stage(int param, const at::Tensor* from = nullptr);
  // True if, once autograd has let go of `*from`, nobody but us can reach the gradient's memory.
  static bool OnlyOurs(const at::Tensor& grad, const at::Tensor* from);
  void DeliverUnit(int unit);
  // Delivers what has not left yet at the end of a part.
  absl::Status FinishPart();
  absl::Status DeliverLate();
  absl::Status CheckHomes() const;
  // The blob of a STEP record: how many arrivals are expected of each parameter, then the user's. A
  // replacement must cut its gradients into parts as its predecessor did, or one would count twice or never.
  std::string PackBlob() const;
  absl::Status UnpackBlob(absl::string_view packed);
  void CopyBuffers(sherd::Step step);
  bool delivering() const { return options_.stage() >= 2 || micro_ + 1 == options_.accumulation(); }
  double ScaleOf(const SampleRange& samples) const;
  void Note(const absl::Status& s) {
    if (error_.ok()) error_ = s;
  }

  std::shared_ptr<StagingSource> staging_;
  std::vector<Param> params_;
  std::vector<Unit> units_;
  std::vector<std::pair<std::string, at::Tensor>> buffers_;
  std::vector<int64_t> buffer_offsets_;
  std::vector<uint64_t> has_grad_, imports_;
  int micro_ = 0;
  bool begun_ = false;   // Begin was called and Step was not
  SampleRange samples_;  // of this micro-batch
  double nominal_ = 1;
  double scale_ = 0;  // that gradients now in `.grad` count with
  double weight_ = 0, loss_sum_ = 0;
  uint64_t sample_count_ = 0, loss_samples_ = 0;
  bool in_part_ = false;
  absl::Status error_;  // of a hook, told by Step
};

absl::StatusOr<JobSpec> ZeroOptimizer::Impl::MakeSpec(const NamedTensors& parameters,
                                                      const std::vector<ParamGroup>& groups,
                                                      const NamedTensors& buffers) {
  if (groups.empty()) return absl::InvalidArgumentError("there is no parameter group");
  std::map<std::string, int> group_of;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].options.kind() != groups[0].options.kind()) {
      return absl::InvalidArgumentError(
          absl::StrCat("parameter group ", g, " has another kind of optimizer than group 0"));
    }
    for (const std::string& name : groups[g].parameters) {
      if (!parameters.contains(name)) {
        return absl::InvalidArgumentError(
            absl::StrCat("parameter group ", g, " names ", name, ", which is no parameter"));
      }
      if (!group_of.emplace(name, g).second) {
        return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is in two groups"));
      }
    }
    scalars_.push_back(groups[g].options.scalars());
  }
  std::vector<TensorSpec> specs;
  std::set<at::TensorImpl*> seen;
  for (const auto& item : parameters) {
    absl::Status ok = CheckTensor(item.key(), item.value());
    if (!ok.ok()) return ok;
    auto group = group_of.find(item.key());
    if (!seen.insert(item.value().unsafeGetTensorImpl()).second) continue;  // tied: under its first name
    if (group == group_of.end()) {
      return absl::InvalidArgumentError(absl::StrCat("parameter ", item.key(), " is in no parameter group"));
    }
    Param p;
    p.name = item.key();
    p.tensor = item.value();
    params_.push_back(p);
    specs.push_back(
        {p.name, p.tensor.sizes().vec(), DType::kFloat32, group->second, p.tensor.requires_grad()});
  }
  // Gradients come about in the reverse order of the forward pass.
  std::reverse(specs.begin(), specs.end());
  absl::StatusOr<Layout> layout = Layout::Create(PackUnits(std::move(specs), options_.bucket_elements()));
  if (!layout.ok()) return layout.status();
  JobSpec spec;
  spec.layout = *layout;
  spec.optimizer = groups[0].options.kind();
  for (const ParamGroup& g : groups) spec.groups.push_back(g.name);
  spec.stage = options_.stage();
  spec.parts = options_.stage() >= 2 ? options_.accumulation() : 1;
  if (options_.global_batch() > 0) {
    const int64_t shares = int64_t{session_.world_size()} * options_.accumulation();
    nominal_ = static_cast<double>((options_.global_batch() + shares - 1) / shares);
  }
  spec.nominal_samples = nominal_;
  for (const auto& item : buffers) {
    const char* type = SafetensorsType(item.value().scalar_type());
    if (type == nullptr || !item.value().device().is_cpu()) {
      return absl::InvalidArgumentError(
          absl::StrCat("buffer ", item.key(), " is ", c10::toString(item.value().scalar_type()), " on ",
                       item.value().device().str(), ", which can not be carried"));
    }
    spec.buffers.push_back({item.key(), item.value().sizes().vec(), type});
    buffers_.emplace_back(item.key(), item.value());
  }
  return spec;
}

absl::Status ZeroOptimizer::Impl::Init(const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
                                       const NamedTensors& buffers) {
  if (options_.stage() < 0 || options_.stage() > 2) {
    return absl::InvalidArgumentError(absl::StrCat("stage is ", options_.stage(), ": it must be 0, 1 or 2"));
  }
  if (options_.accumulation() < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("accumulation is ", options_.accumulation(), ": it must be at least 1"));
  }
  absl::StatusOr<JobSpec> spec = MakeSpec(parameters, groups, buffers);
  if (!spec.ok()) return spec.status();
  absl::Status status = session_.Attach(*spec);
  if (!status.ok()) return status;
  const Layout& layout = session_.memory().layout();
  units_.resize(layout.units().size());
  for (size_t i = 0; i < params_.size(); ++i) {
    const TensorInfo& info = *layout.Find(params_[i].name);
    params_[i].index = info.index;
    params_[i].unit = info.unit;
    params_[i].offset = (info.blocks.begin - layout.units()[info.unit].blocks.begin) * kBlockElements;
    if (info.spec.trainable) units_[info.unit].params.push_back(static_cast<int>(i));
  }
  for (size_t b = 0; b < buffers_.size(); ++b) {
    buffer_offsets_.push_back(runtime::BufferOffset(session_.memory().spec(), static_cast<int>(b)));
  }
  has_grad_.assign((layout.tensors().size() + 63) / 64, 0);
  status = PlaceInSharedMemory();
  if (!status.ok()) return status;
  client::StepWriter::Options how;
  const int busy = session_.world_size() + session_.memory().control().Newest()->servers;
  how.overlap = busy <= runtime::UsableCores();
  how.spin = runtime::SpinPolicy::ForHost(busy, runtime::UsableCores());
  if (options_.on_wait()) {
    how.on_wait = [f = options_.on_wait()](absl::Duration d, const std::string& whom) {
      f(absl::ToDoubleSeconds(d), whom);
    };
  }
  writer_ = std::make_unique<client::StepWriter>(&session_.memory(), Rank(session_.rank()), how);
  absl::StatusOr<client::StepWriter::Start> start = writer_->Resume();
  if (!start.ok()) return start.status();
  if (absl::Status unpacked = UnpackBlob(start->blob); !unpacked.ok()) return unpacked;
  next_blob_ = committed_blob_;
  if (start->next.step.value() > 1) {  // running statistics as they were committed
    const absl::Span<char> saved =
        session_.memory().rank(Rank(0)).buffers(sherd::Step(start->next.step.value() - 1));
    for (size_t b = 0; b < buffers_.size(); ++b) {
      at::Tensor& t = buffers_[b].second;
      t.copy_(at::from_blob(saved.data() + buffer_offsets_[b], t.sizes(), t.scalar_type()));
    }
  }
  HookGradients();
  OfferStaging();
  return absl::OkStatus();
}

void ZeroOptimizer::Impl::OfferStaging() {
  std::vector<StagingSource::Size> sizes;
  for (size_t u = 0; u < units_.size(); ++u) {
    // A place holds a whole unit.
    if (units_[u].params.size() != 1) continue;
    const StagingSource::Size size = {params_[units_[u].params[0]].tensor.numel() * 4,
                                      writer_->UnitBytes(static_cast<int>(u))};
    const auto known = std::find_if(sizes.begin(), sizes.end(), [&](const StagingSource::Size& s) {
      return s.requested == size.requested;
    });
    if (known == sizes.end()) sizes.push_back(size);
  }
  if (sizes.empty()) return;
  staging_ = StagingSource::Create(
      session_.shared_memory(), std::move(sizes), [this](int64_t bytes) { return writer_->Borrow(bytes); },
      [this](const float* p) { writer_->Return(p); });
}

absl::Status ZeroOptimizer::Impl::PlaceInSharedMemory() {
  at::NoGradGuard no_grad;
  if (session_.must_initialise()) {
    absl::StatusOr<absl::Span<float>> plane = session_.InitialValues();
    if (!plane.ok()) return plane.status();
    for (const Param& p : params_) {
      const TensorInfo& info = session_.memory().layout().tensors()[p.index];
      if (info.numel == 0) continue;
      const at::Tensor values = p.tensor.detach().contiguous();
      std::memcpy(plane->data() + info.blocks.begin * kBlockElements, values.data_ptr<float>(),
                  info.numel * 4);
    }
    CopyBuffers(sherd::Step(0));
    absl::Status committed = session_.CommitInitial();
    if (!committed.ok()) return committed;
  } else if (absl::Status waited = session_.WaitInitialized(); !waited.ok()) {
    return waited;
  }
  std::shared_ptr<runtime::JobMemory> memory = session_.shared_memory();
  std::vector<GuardedRange> guarded;
  for (Param& p : params_) {
    const TensorInfo& info = memory->layout().tensors()[p.index];
    if (info.numel == 0) continue;
    float* home = memory->plane(0) + info.blocks.begin * kBlockElements;
    // A storage of its own for each tensor, which keeps the mapping alive for as long as anyone looks at it.
    at::Tensor view = at::from_blob(
        home, p.tensor.sizes(), [memory](void*) {}, at::kFloat);
    p.tensor.set_data(view);
    p.home = home;
    guarded.push_back({home, info.numel * 4, p.name});
  }
  GuardAgainstStrayWrites(std::move(guarded));
  return absl::OkStatus();
}

void ZeroOptimizer::Impl::HookGradients() {
  for (size_t i = 0; i < params_.size(); ++i) {
    Param& p = params_[i];
    if (!p.tensor.requires_grad()) continue;
    // The accumulator lives as long as somebody holds it; the hook hangs on it.
    p.accumulator = ::torch::autograd::impl::grad_accumulator(p.tensor);
    p.accumulator->add_post_hook(std::make_unique<Arrival>(this, static_cast<int>(i)));
  }
}

double ZeroOptimizer::Impl::ScaleOf(const SampleRange& samples) const {
  return options_.global_batch() == 0 ? 1.0 : static_cast<double>(samples.size()) / nominal_;
}

Batch ZeroOptimizer::Impl::Begin() {
  Batch batch;
  batch.status = error_;
  const uint64_t step = writer_->current().step.value();
  if (!error_.ok() || (micro_ == 0 && options_.steps() > 0 && step > options_.steps())) return batch;
  batch.more = true;
  batch.step = step;
  batch.micro = micro_;
  batch.micros = options_.accumulation();
  if (options_.global_batch() > 0) {
    batch.samples = ShareOf(options_.global_batch(), session_.world_size(), session_.rank(),
                            options_.accumulation(), micro_);
  }
  batch.seed =
      Mix(Mix(Mix(options_.seed()) ^ step) ^ (static_cast<uint64_t>(session_.rank()) << 32 | micro_));
  samples_ = batch.samples;
  begun_ = true;
  const double scale = ScaleOf(samples_);
  if (scale > 0) {
    // What earlier micro-batches left in `.grad` was a mean over their samples; from now on it counts with
    // this one's weight.
    if (scale_ > 0 && scale_ != scale) {
      at::NoGradGuard no_grad;
      for (Param& p : params_) {
        if (p.pending) p.tensor.mutable_grad().mul_(scale_ / scale);
      }
    }
    scale_ = scale;
    weight_ += scale;
  }
  if (delivering()) {
    BeginPart();
    StagingSource::Enter(staging_.get());
  }
  return batch;
}

void ZeroOptimizer::Impl::BeginPart() {
  in_part_ = true;
  writer_->BeginPart(static_cast<float>(scale_));
  for (Unit& u : units_) {
    u.delivered = false;
    u.missing = 0;
    for (int i : u.params) {
      params_[i].staged = false;
      if (params_[i].expected > 0) ++u.missing;
    }
  }
}

void ZeroOptimizer::Impl::Arrived(int i, const at::Tensor* from) {
  Param& p = params_[i];
  ++p.arrivals;
  p.pending = true;
  SetBit(has_grad_, p.index);
  Unit& u = units_[p.unit];
  // Before the last micro-batch of stages 0 and 1, or too late for its unit: stays where autograd put it.
  if (!in_part_ || u.delivered) return;
  if (p.arrivals < p.expected) return;
  const bool first = !p.staged;
  Stage(i, from);
  if (first && p.expected > 0 && --u.missing == 0) DeliverUnit(p.unit);
}

bool ZeroOptimizer::Impl::OnlyOurs(const at::Tensor& grad, const at::Tensor* from) {
  if (grad.use_count() != 1) return false;
  size_t passing = 0;  // tensors that look at this memory now and go with `from`
  if (from != nullptr && from->defined() && from->is_alias_of(grad)) {
    if (from->use_count() != 1) return false;
    passing = 1;
    // A transposed gradient is a view, which keeps the tensor it was made from.
    const auto* view = ::torch::autograd::impl::get_view_autograd_meta(*from);
    if (view != nullptr && view->has_bw_view() && view->get_backward_view().base_.use_count() == 1) ++passing;
  }
  return grad.storage().use_count() == 1 + passing;
}

void ZeroOptimizer::Impl::Stage(int i, const at::Tensor* from) {
  Param& p = params_[i];
  at::Tensor& grad = p.tensor.mutable_grad();
  p.pending = false;
  if (!grad.defined()) return;
  if (staging_ != nullptr && grad.layout() == at::kStrided && grad.is_contiguous() &&
      staging_->Owns(grad.data_ptr()) && OnlyOurs(grad, from)) {
    absl::StatusOr<bool> there = writer_->StageAt(p.unit, grad.data_ptr<float>());
    if (!there.ok()) return Note(there.status());
    if (*there) {
      p.staged = true;
      grad.reset();
      return;
    }
  }
  absl::StatusOr<float*> to = writer_->Stage(p.unit);
  if (!to.ok()) {
    Note(to.status());
    return;
  }
  if (*to != nullptr && grad.numel() > 0) {
    at::NoGradGuard no_grad;
    if (grad.is_sparse()) grad = grad.to_dense();
    const at::Tensor whole = grad.is_contiguous() ? grad : grad.contiguous();
    const float* from = whole.data_ptr<float>();
    float* at = *to + p.offset;
    const int64_t n = whole.numel();
    if (p.staged) {
      for (int64_t e = 0; e < n; ++e) at[e] += from[e];
    } else if (n >= kStreamElements) {
      kernels::StreamCopy(at, from, n);
    } else {
      std::memcpy(at, from, n * 4);
    }
    staged_bytes_ += n * 4;
  }
  p.staged = true;
  grad.reset();
}

void ZeroOptimizer::Impl::DeliverUnit(int unit) {
  Unit& u = units_[unit];
  absl::StatusOr<float*> to = writer_->Stage(unit);
  if (!to.ok()) {
    Note(to.status());
    return;
  }
  for (int i : u.params) {
    const Param& p = params_[i];
    if (!p.staged && *to != nullptr) std::memset(*to + p.offset, 0, p.tensor.numel() * 4);
  }
  writer_->Deliver(unit);
  u.delivered = true;
}

absl::Status ZeroOptimizer::Impl::FinishPart() {
  for (size_t u = 0; u < units_.size(); ++u) {
    if (units_[u].delivered) continue;
    bool any = false;
    for (int i : units_[u].params) {
      if (params_[i].pending) Stage(i);
      any |= params_[i].staged;
    }
    if (any) DeliverUnit(static_cast<int>(u));
  }
  if (!error_.ok()) return error_;
  in_part_ = false;
  return writer_->EndPart();
}

absl::Status ZeroOptimizer::Impl::DeliverLate() {
  writer_->BeginLatePart(static_cast<float>(scale_));
  for (size_t u = 0; u < units_.size(); ++u) {
    bool any = false;
    for (int i : units_[u].params) {
      params_[i].staged = false;
      if (!params_[i].pending) continue;
      Stage(i);
      any = true;
    }
    if (any) DeliverUnit(static_cast<int>(u));
  }
  return error_;
}

absl::Status ZeroOptimizer::Impl::CheckHomes() const {
  for (const Param& p : params_) {
    if (p.home != nullptr && p.tensor.data_ptr() != p.home) {
      return absl::FailedPreconditionError(
          absl::StrCat("parameter ", p.name,
                       " has left shared memory: something replaced its storage (.to(), "
                       "share_memory() or a load that assigns); change its values through Write"));
    }
  }
  return absl::OkStatus();
}

std::string ZeroOptimizer::Impl::PackBlob() const {
  std::vector<uint32_t> words = {0};  // how many pairs follow: index, arrivals
  for (const Param& p : params_) {
    if (p.expected == 1) continue;
    words.insert(words.end(), {static_cast<uint32_t>(p.index), static_cast<uint32_t>(p.expected)});
  }
  words[0] = static_cast<uint32_t>(words.size() / 2);
  return absl::StrCat(
      absl::string_view(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)),
      next_blob_);
}

absl::Status ZeroOptimizer::Impl::UnpackBlob(absl::string_view packed) {
  committed_packed_ = std::string(packed);
  for (Param& p : params_) p.expected = 1;
  uint32_t pairs = 0;
  if (packed.size() >= sizeof pairs) {
    std::memcpy(&pairs, packed.data(), sizeof pairs);
    packed.remove_prefix(sizeof pairs);
  }
  if (packed.size() / (2 * sizeof(uint32_t)) < pairs) {
    return absl::DataLossError("the state that this rank committed with its last step is damaged");
  }
  for (; pairs > 0; --pairs, packed.remove_prefix(2 * sizeof(uint32_t))) {
    uint32_t pair[2];
    std::memcpy(pair, packed.data(), sizeof pair);
    for (Param& p : params_) {
      if (static_cast<uint32_t>(p.index) == pair[0]) p.expected = static_cast<int>(pair[1]);
    }
  }
  committed_blob_ = std::string(packed);
  return absl::OkStatus();
}

void ZeroOptimizer::Impl::CopyBuffers(sherd::Step step) {
  if (session_.rank() != 0 || buffers_.empty()) return;
  const absl::Span<char> to = session_.memory().rank(Rank(0)).buffers(step);
  for (size_t b = 0; b < buffers_.size(); ++b) {
    const at::Tensor whole = buffers_[b].second.detach().contiguous();
    std::memcpy(to.data() + runtime::BufferOffset(session_.memory().spec(), static_cast<int>(b)),
                whole.data_ptr(), whole.nbytes());
  }
}

absl::StatusOr<StepInfo> ZeroOptimizer::Impl::Step(const at::Tensor& loss) {
  if (!begun_) return absl::FailedPreconditionError("Step without Begin");
  StagingSource::Enter(nullptr);
  if (!error_.ok()) return error_;
  begun_ = false;
  const uint64_t n = options_.global_batch() > 0 ? samples_.size() : 1;
  sample_count_ += n;
  if (loss.defined() && n > 0) {
    loss_sum_ += loss.item<double>() * static_cast<double>(n);
    loss_samples_ += n;
  }
  if (absl::Status homes = CheckHomes(); !homes.ok()) return homes;
  if (in_part_) {
    if (absl::Status finished = FinishPart(); !finished.ok()) return finished;
  }
  for (Param& p : params_) {
    if (samples_.size() > 0 || options_.global_batch() == 0) p.expected = p.arrivals;
    p.arrivals = 0;
  }
  StepInfo info;
  if (++micro_ < options_.accumulation()) return info;
  if (absl::Status late = DeliverLate(); !late.ok()) return late;
  client::StepWriter::Record record;
  record.weight = weight_;
  record.samples = sample_count_;
  record.loss = loss_samples_ > 0 ? loss_sum_ / static_cast<double>(loss_samples_) : 0;
  record.max_grad_norm = options_.max_grad_norm();
  record.groups = scalars_;
  record.has_grad = has_grad_;
  record.imports = imports_;
  CopyBuffers(writer_->current().step);
  const std::string packed = PackBlob();
  absl::StatusOr<Verdict> verdict = writer_->Finish(record, packed);
  if (!verdict.ok()) return verdict.status();
  micro_ = 0;
  weight_ = loss_sum_ = scale_ = 0;
  sample_count_ = loss_samples_ = 0;
  std::fill(has_grad_.begin(), has_grad_.end(), 0);
  imports_.clear();
  if (verdict->kind == VerdictKind::kReject) {
    // The next attempt begins where this one did.
    if (absl::Status unpacked = UnpackBlob(std::string(committed_packed_)); !unpacked.ok()) return unpacked;
    return absl::InvalidArgumentError(verdict->reason);
  }
  committed_blob_ = next_blob_;
  committed_packed_ = packed;
  // Somebody else changed the values: a graph built before must not be used any more.
  for (Param& p : params_) p.tensor.unsafeGetTensorImpl()->bump_version();
  info.complete = true;
  info.skipped = verdict->kind == VerdictKind::kSkip;
  info.step = verdict->id.step.value();
  info.epoch = session_.epoch();
  info.world_size = session_.world_size();
  info.rank = session_.rank();
  info.loss = verdict->loss;
  info.grad_norm = verdict->grad_norm;
  info.samples = verdict->samples;
  return info;
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

absl::StatusOr<std::unique_ptr<ZeroOptimizer>> ZeroOptimizer::Create(Session& session,
                                                                     const NamedTensors& parameters,
                                                                     const OptimizerOptions& optimizer,
                                                                     const ZeroOptions& options,
                                                                     const NamedTensors& buffers) {
  return Create(session, parameters, {ParamGroup{"", parameters.keys(), optimizer}}, options, buffers);
}

absl::StatusOr<std::unique_ptr<ZeroOptimizer>> ZeroOptimizer::Create(Session& session,
                                                                     const NamedTensors& parameters,
                                                                     const std::vector<ParamGroup>& groups,
                                                                     const ZeroOptions& options,
                                                                     const NamedTensors& buffers) {
  auto impl = std::make_unique<Impl>(session, options);
  absl::Status status = Guarded<absl::Status>([&] { return impl->Init(parameters, groups, buffers); });
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

GroupScalars& ZeroOptimizer::scalars(int group) { return impl_->scalars_.at(group); }
void ZeroOptimizer::set_lr(double lr) {
  for (GroupScalars& s : impl_->scalars_) s[kLr] = lr;
}
void ZeroOptimizer::set_max_grad_norm(double norm) { impl_->options_.max_grad_norm(norm); }
void ZeroOptimizer::SetBlob(std::string blob) { impl_->next_blob_ = std::move(blob); }
const std::string& ZeroOptimizer::blob() const { return impl_->committed_blob_; }
absl::Status ZeroOptimizer::Write(const std::string& name, const at::Tensor& value) {
  return Guarded<absl::Status>([&] { return impl_->Write(name, value); });
}
absl::Status ZeroOptimizer::Detach(bool finished) { return impl_->session_.Detach(finished); }

ZeroOptimizer::Traffic ZeroOptimizer::traffic() const {
  return {impl_->staged_bytes_, impl_->writer_->staging_bytes(), impl_->writer_->ring_growths()};
}

}  // namespace sherd::torch

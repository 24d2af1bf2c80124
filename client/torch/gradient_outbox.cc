#include "client/torch/gradient_outbox.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/stream_copy.h"

namespace sherd::torch {
namespace {

// Copies shorter than this stay in the cache; longer ones would only push out what backward needs.
constexpr int64_t kStreamElements = 64 << 10;

}  // namespace

struct GradientOutbox::Arrival : ::torch::autograd::FunctionPostHook {
  Arrival(GradientOutbox* outbox, int param) : outbox(outbox), param(param) {}
  ::torch::autograd::variable_list operator()(const ::torch::autograd::variable_list& outputs,
                                              const ::torch::autograd::variable_list& inputs) override {
    outbox->Arrived(param, inputs.empty() ? nullptr : &inputs[0]);
    return outputs;
  }
  GradientOutbox* const outbox;
  const int param;
};

GradientOutbox::GradientOutbox(const Layout& layout, const std::vector<std::string>& names,
                               const std::vector<at::Tensor>& tensors) {
  units_.resize(layout.units().size());
  has_grad_.assign((layout.tensors().size() + 63) / 64, 0);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& info = *layout.Find(names[i]);
    Param p;
    p.tensor = tensors[i];
    p.index = info.index;
    p.unit = info.unit;
    p.offset = (info.blocks.begin - layout.units()[info.unit].blocks.begin) * kBlockElements;
    if (info.spec.trainable) units_[info.unit].params.push_back(static_cast<int>(i));
    params_.push_back(std::move(p));
  }
}

GradientOutbox::~GradientOutbox() {
  if (staging_ != nullptr) staging_->Close();
}

void GradientOutbox::Open(client::StepWriter* writer, std::shared_ptr<runtime::JobMemory> memory) {
  writer_ = writer;
  for (size_t i = 0; i < params_.size(); ++i) {
    Param& p = params_[i];
    if (!p.tensor.requires_grad()) continue;
    // The accumulator lives as long as somebody holds it; the hook hangs on it.
    p.accumulator = ::torch::autograd::impl::grad_accumulator(p.tensor);
    p.accumulator->add_post_hook(std::make_unique<Arrival>(this, static_cast<int>(i)));
  }
  OfferStaging(std::move(memory));
}

void GradientOutbox::OfferStaging(std::shared_ptr<runtime::JobMemory> memory) {
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
      std::move(memory), std::move(sizes), [this](int64_t bytes) { return writer_->Borrow(bytes); },
      [this](const float* p) { writer_->Return(p); });
}

void GradientOutbox::BeginPart(float scale) {
  in_part_ = true;
  writer_->BeginPart(scale);
  for (Unit& u : units_) {
    u.delivered = false;
    u.missing = 0;
    for (int i : u.params) {
      params_[i].staged = false;
      if (params_[i].expected > 0) ++u.missing;
    }
  }
  StagingSource::Enter(staging_.get());
}

void GradientOutbox::Arrived(int i, const at::Tensor* from) {
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

bool GradientOutbox::OnlyOurs(const at::Tensor& grad, const at::Tensor* from) {
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

void GradientOutbox::Stage(int i, const at::Tensor* from) {
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
  if (*to != nullptr && grad.numel() > 0) CopyToStaging(p, *to + p.offset, grad);
  p.staged = true;
  grad.reset();
}

void GradientOutbox::CopyToStaging(Param& p, float* to, at::Tensor grad) {
  at::NoGradGuard no_grad;
  if (grad.is_sparse()) grad = grad.to_dense();
  grad = grad.contiguous();
  const float* from = grad.data_ptr<float>();
  const int64_t n = grad.numel();
  if (p.staged) {
    for (int64_t e = 0; e < n; ++e) to[e] += from[e];
  } else if (n >= kStreamElements) {
    kernels::StreamCopy(to, from, n);
  } else {
    std::memcpy(to, from, n * 4);
  }
  staged_bytes_ += n * 4;
}

void GradientOutbox::DeliverUnit(int unit) {
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

absl::Status GradientOutbox::FinishPart() {
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

absl::Status GradientOutbox::DeliverLate(float scale) {
  writer_->BeginLatePart(scale);
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

void GradientOutbox::EndMicroBatch(bool computed) {
  StagingSource::Enter(nullptr);
  for (Param& p : params_) {
    if (computed) p.expected = p.arrivals;
    p.arrivals = 0;
  }
}

void GradientOutbox::Rescale(double factor) {
  at::NoGradGuard no_grad;
  for (Param& p : params_) {
    if (p.pending) p.tensor.mutable_grad().mul_(factor);
  }
}

void GradientOutbox::ClearHasGrad() { std::fill(has_grad_.begin(), has_grad_.end(), 0); }

std::string GradientOutbox::PackExpected() const {
  std::vector<uint32_t> words = {0};  // how many pairs follow: index, arrivals
  for (const Param& p : params_) {
    if (p.expected == 1) continue;
    words.insert(words.end(), {static_cast<uint32_t>(p.index), static_cast<uint32_t>(p.expected)});
  }
  words[0] = static_cast<uint32_t>(words.size() / 2);
  return std::string(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t));
}

absl::Status GradientOutbox::UnpackExpected(absl::string_view* packed) {
  for (Param& p : params_) p.expected = 1;
  uint32_t pairs = 0;
  if (packed->size() >= sizeof pairs) {
    std::memcpy(&pairs, packed->data(), sizeof pairs);
    packed->remove_prefix(sizeof pairs);
  }
  if (packed->size() / (2 * sizeof(uint32_t)) < pairs) {
    return absl::DataLossError("the state that this rank committed with its last step is damaged");
  }
  for (; pairs > 0; --pairs, packed->remove_prefix(2 * sizeof(uint32_t))) {
    uint32_t pair[2];
    std::memcpy(pair, packed->data(), sizeof pair);
    for (Param& p : params_) {
      if (static_cast<uint32_t>(p.index) == pair[0]) p.expected = static_cast<int>(pair[1]);
    }
  }
  return absl::OkStatus();
}

}  // namespace sherd::torch

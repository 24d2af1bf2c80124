#include "client/torch/gradient_outbox.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/torch/tensor_checks.h"
#include "kernels/convert.h"
#include "kernels/stream_copy.h"
#include "runtime/kernel_types.h"

namespace sherd::torch {
namespace {

// Copies shorter than this stay in the cache; longer ones would only push out what backward needs.
constexpr int64_t kStreamBytes = 256 << 10;

kernels::DType TypeOf(const at::Tensor& t) { return runtime::KernelType(*DTypeOf(t.scalar_type())); }

// to[i] += from[i], in fp32, rounded to `to_type`.
void Add(kernels::DType from_type, const char* from, kernels::DType to_type, char* to, int64_t n) {
  float sum[kBlockElements], more[kBlockElements];
  for (int64_t i = 0; i < n; i += kBlockElements) {
    const int64_t some = std::min(n - i, kBlockElements);
    kernels::ToFloat(to_type, to + i * SizeOf(to_type), some, sum);
    kernels::ToFloat(from_type, from + i * SizeOf(from_type), some, more);
    for (int64_t e = 0; e < some; ++e) sum[e] += more[e];
    kernels::FromFloat(sum, some, to_type, to + i * SizeOf(to_type));
  }
}

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
  staged_as_ = memory->spec().staging;
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
    const at::Tensor& tensor = params_[units_[u].params[0]].tensor;
    if (DTypeOf(tensor.scalar_type()) != staged_as_) continue;  // has to be converted
    const StagingSource::Size size = {tensor.numel() * SizeOf(staged_as_),
                                      writer_->UnitBytes(static_cast<int>(u))};
    const auto known = std::find_if(sizes.begin(), sizes.end(), [&](const StagingSource::Size& s) {
      return s.requested == size.requested;
    });
    if (known == sizes.end()) sizes.push_back(size);
  }
  if (sizes.empty()) return;
  staging_ = StagingSource::Create(
      std::move(memory), std::move(sizes), [this](int64_t bytes) { return writer_->Borrow(bytes); },
      [this](const void* p) { writer_->Return(p); });
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
  if (p.summed && grad.defined()) Sum(p);
  if (!p.summed && !grad.defined()) return;
  if (!p.summed && staging_ != nullptr && grad.layout() == at::kStrided && grad.is_contiguous() &&
      staging_->Owns(grad.data_ptr()) && OnlyOurs(grad, from)) {
    absl::StatusOr<bool> there = writer_->StageAt(p.unit, grad.data_ptr());
    if (!there.ok()) return Note(there.status());
    if (*there) {
      p.staged = true;
      grad.reset();
      return;
    }
  }
  absl::StatusOr<void*> to = writer_->Stage(p.unit);
  if (!to.ok()) {
    Note(to.status());
    return;
  }
  if (*to != nullptr && p.tensor.numel() > 0) {
    CopyToStaging(p, static_cast<char*>(*to) + p.offset * SizeOf(staged_as_), p.summed ? p.sum : grad);
  }
  p.staged = true;
  p.summed = false;
  grad.reset();
}

void GradientOutbox::Sum(Param& p) {
  at::NoGradGuard no_grad;
  at::Tensor& grad = p.tensor.mutable_grad();
  const at::Tensor dense = grad.is_sparse() ? grad.to_dense() : grad;
  if (!p.sum.defined()) p.sum = at::empty(p.tensor.sizes(), at::kFloat);
  p.summed ? p.sum.add_(dense) : p.sum.copy_(dense);
  p.summed = true;
  grad.reset();
}

void GradientOutbox::CopyToStaging(Param& p, void* to, at::Tensor grad) {
  at::NoGradGuard no_grad;
  if (grad.is_sparse()) grad = grad.to_dense();
  grad = grad.contiguous();
  const auto* const from = static_cast<const char*>(grad.data_ptr());
  auto* const bytes = static_cast<char*>(to);
  const int64_t n = grad.numel(), size = n * SizeOf(staged_as_);
  const kernels::DType from_type = TypeOf(grad), to_type = runtime::KernelType(staged_as_);
  if (p.staged) {
    Add(from_type, from, to_type, bytes, n);
  } else if (from_type != to_type || size < kStreamBytes) {
    kernels::Convert(from_type, from, to_type, to, n);
  } else {
    kernels::StreamCopy(bytes, from, size);
  }
  staged_bytes_ += size;
}

void GradientOutbox::DeliverUnit(int unit) {
  Unit& u = units_[unit];
  absl::StatusOr<void*> to = writer_->Stage(unit);
  if (!to.ok()) {
    Note(to.status());
    return;
  }
  for (int i : u.params) {
    const Param& p = params_[i];
    if (p.staged || *to == nullptr) continue;
    std::memset(static_cast<char*>(*to) + p.offset * SizeOf(staged_as_), 0,
                p.tensor.numel() * SizeOf(staged_as_));
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
    // 16 bits are too few to add up many micro-batches in.
    if (p.pending && p.tensor.scalar_type() != at::kFloat && p.tensor.grad().defined()) Sum(p);
  }
}

void GradientOutbox::GiveUp() {
  StagingSource::Enter(nullptr);
  for (Param& p : params_) {
    p.arrivals = 0;
    p.staged = p.pending = p.summed = false;
    if (p.tensor.grad().defined()) p.tensor.mutable_grad().reset();
  }
  for (Unit& u : units_) u.delivered = false;
  in_part_ = false;
  ClearHasGrad();
  if (absl::IsAborted(error_)) error_ = absl::OkStatus();
}

void GradientOutbox::Rescale(double factor) {
  at::NoGradGuard no_grad;
  for (Param& p : params_) {
    if (!p.pending) continue;
    if (p.tensor.grad().defined()) p.tensor.mutable_grad().mul_(factor);
    if (p.summed) p.sum.mul_(factor);
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

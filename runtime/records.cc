#include "runtime/records.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/records_layout.h"

namespace sherd::runtime {

int GroupCount(const JobSpec& spec) { return std::max<int>(1, static_cast<int>(spec.groups.size())); }

int64_t RankRecords::BytesFor(const JobSpec& spec) {
  Areas a;
  a.Add(Units(spec) * static_cast<int64_t>(sizeof(Entry)));
  a.Add(2 * StepAreas(spec, sizeof(StepHeader)).size);
  return a.size();
}

RankRecords::RankRecords(const JobSpec* spec, char* memory) : spec_(spec), base_(memory) {
  Areas a;
  entries_at_ = a.Add(Units(*spec) * static_cast<int64_t>(sizeof(Entry)));
  const StepAreas s(*spec, sizeof(StepHeader));
  step_bytes_ = s.size;
  steps_at_ = a.Add(2 * step_bytes_);
  groups_at_ = s.groups, parts_at_ = s.parts, bits_at_ = s.bits, blob_at_ = s.blob, buffers_at_ = s.buffers;
}

RankRecords::Entry* RankRecords::entry(int unit) const {
  return reinterpret_cast<Entry*>(base_ + entries_at_) + unit;
}

RankRecords::StepHeader* RankRecords::header(Step step) const {
  return reinterpret_cast<StepHeader*>(base_ + steps_at_ +
                                       static_cast<int64_t>(step.value() & 1) * step_bytes_);
}

void RankRecords::PublishDelivered(int unit, Mark mark, const Delivery& delivery) {
  Entry& e = *entry(unit);
  // Whoever reads a delivery has been shown its mark, and holds the trainer back until it has consumed it; so
  // the fields are never overwritten under a reader.
  e.offset = delivery.offset;
  e.chunk = delivery.chunk;
  e.scale = delivery.scale;
  e.mark.store(mark.word(), std::memory_order_release);
}

Mark RankRecords::Delivered(int unit) const {
  return Mark(entry(unit)->mark.load(std::memory_order_acquire));
}

std::atomic<uint64_t>& RankRecords::Wanted(int unit) const { return entry(unit)->wanted; }
std::atomic<uint64_t>& RankRecords::Gather(int unit) const { return entry(unit)->gather; }

std::atomic<uint64_t>& RankRecords::GatherTurn(int unit) const { return entry(unit)->gather_turn; }

Delivery RankRecords::ReadDelivery(int unit) const {
  const Entry& e = *entry(unit);
  return {e.chunk, e.offset, e.scale};
}

absl::Status RankRecords::PublishStep(const TrainerStep& step, absl::string_view blob) {
  if (static_cast<int64_t>(blob.size()) > spec_->max_blob_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the step's blob has ", blob.size(), " bytes, at most ",
                                                   spec_->max_blob_bytes,
                                                   " are carried; keep large state in a file"));
  }
  if (static_cast<int>(step.groups.size()) != GroupCount(*spec_)) {
    return absl::InvalidArgumentError(absl::StrCat("the step has ", step.groups.size(),
                                                   " parameter groups, the job was created with ",
                                                   GroupCount(*spec_)));
  }
  if (step.imports.size() > kMaxStepImports) {
    return absl::InvalidArgumentError(absl::StrCat(step.imports.size(), " writes in one step, at most ",
                                                   kMaxStepImports, "; write several tensors at once"));
  }
  StepHeader& h = *header(step.id.step);
  char* record = reinterpret_cast<char*>(&h);
  Invalidate(h.mark);
  h.samples = step.samples;
  h.weight = step.weight, h.loss = step.loss, h.loss_scale = step.loss_scale,
  h.max_grad_norm = step.max_grad_norm;
  h.groups = static_cast<uint32_t>(step.groups.size());
  h.imports = static_cast<uint32_t>(step.imports.size());
  std::copy(step.imports.begin(), step.imports.end(), h.import_ids);
  h.blob_bytes = blob.size();
  std::memcpy(record + groups_at_, step.groups.data(), step.groups.size() * sizeof(GroupScalars));
  std::copy_n(step.parts.begin(), std::min<size_t>(step.parts.size(), Units(*spec_)),
              reinterpret_cast<uint16_t*>(record + parts_at_));
  std::copy_n(step.has_grad.begin(), std::min<size_t>(step.has_grad.size(), TensorWords(*spec_)),
              reinterpret_cast<uint64_t*>(record + bits_at_));
  if (!blob.empty()) std::memcpy(record + blob_at_, blob.data(), blob.size());
  // Sequentially consistent: the last rank to record must see that all others have (and then rings).
  h.mark.store(RecordWord(step.id), std::memory_order_seq_cst);
  return absl::OkStatus();
}

std::optional<StepId> RankRecords::HasStep(Step step) const {
  const Mark mark(header(step)->mark.load(std::memory_order_seq_cst));
  if (mark.parts() != 1 || mark.id().step != step) return std::nullopt;
  return mark.id();
}

std::optional<TrainerStep> RankRecords::ReadStep(Step step) const {
  const std::optional<StepId> id = HasStep(step);
  if (!id.has_value()) return std::nullopt;
  const StepHeader& h = *header(step);
  const char* record = reinterpret_cast<const char*>(&h);
  TrainerStep s;
  s.id = *id;
  s.samples = h.samples;
  s.weight = h.weight, s.loss = h.loss, s.loss_scale = h.loss_scale, s.max_grad_norm = h.max_grad_norm;
  s.groups.resize(std::min<uint32_t>(h.groups, GroupCount(*spec_)));
  std::memcpy(s.groups.data(), record + groups_at_, s.groups.size() * sizeof(GroupScalars));
  s.parts.resize(Units(*spec_));
  std::memcpy(s.parts.data(), record + parts_at_, s.parts.size() * 2);
  s.has_grad.resize(TensorWords(*spec_));
  std::memcpy(s.has_grad.data(), record + bits_at_, s.has_grad.size() * 8);
  s.imports.assign(h.import_ids, h.import_ids + std::min<uint32_t>(h.imports, kMaxStepImports));
  return s;
}

std::string RankRecords::ReadBlob(Step step) const {
  if (!HasStep(step).has_value()) return "";
  const StepHeader& h = *header(step);
  return std::string(reinterpret_cast<const char*>(&h) + blob_at_,
                     std::min<uint64_t>(h.blob_bytes, spec_->max_blob_bytes));
}

absl::Span<char> RankRecords::buffers(Step step) const {
  return {reinterpret_cast<char*>(header(step)) + buffers_at_, static_cast<size_t>(BufferArea(*spec_))};
}

}  // namespace sherd::runtime

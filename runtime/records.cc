#include "runtime/records.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sherd::runtime {
namespace {

// Lays out areas one after another, each aligned to a cache line.
class Areas {
 public:
  int64_t Add(int64_t bytes) {
    const int64_t at = size_;
    size_ = (size_ + bytes + 63) / 64 * 64;
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

int64_t TensorWords(const JobSpec& spec) {
  return (static_cast<int64_t>(spec.layout.tensors().size()) + 63) / 64;
}
int64_t Units(const JobSpec& spec) { return static_cast<int64_t>(spec.layout.units().size()); }

struct ProposalWords {
  uint64_t ranges, snapshot, import;
  void Set(const Proposals& p) { ranges = p.ranges, snapshot = p.snapshot, import = p.import; }
  Proposals Get() const { return {ranges, snapshot, import}; }
};

using Word = std::atomic<uint64_t>;

// Begins to overwrite a record: from here on it reads as absent.
void Invalidate(Word& mark) {
  mark.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
}

// Marks of step 0 would read as absent; records of a step count from 1.
uint64_t RecordWord(StepId id) { return Mark::Of(id, 1).word(); }

}  // namespace

int GroupCount(const JobSpec& spec) { return std::max<int>(1, static_cast<int>(spec.groups.size())); }

// ---------------------------------------------------------------- trainer

struct RankRecords::Entry {
  Word mark;
  uint64_t offset;
  uint32_t chunk;
  float scale;
  Word wanted;
};

struct RankRecords::StepHeader {
  Word mark;
  uint64_t samples;
  double weight, loss, max_grad_norm;
  LossScale loss_scale;
  uint32_t groups, imports;
  uint64_t blob_bytes;
  uint64_t import_ids[kMaxStepImports];
};

namespace {
struct StepAreas {
  int64_t groups, parts, bits, blob, buffers, size;
  StepAreas(const JobSpec& spec, int64_t header) {
    Areas a;
    a.Add(header);
    groups = a.Add(GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars)));
    parts = a.Add(Units(spec) * 2);
    bits = a.Add(TensorWords(spec) * 8);
    blob = a.Add(spec.max_blob_bytes);
    buffers = a.Add(BufferArea(spec));
    size = a.size();
  }
};
}  // namespace

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

// ---------------------------------------------------------------- owner

struct OwnerRecords::BoundaryRecord {
  Word mark;  // (before, n)
  uint64_t ranges_epoch;
  ProposalWords proposals;
};

struct OwnerRecords::Page {
  alignas(64) Word done;
  ProposalWords done_decided[2];  // by parity of the step
  Word rejected;
  Word entered;  // ranges epoch
  Word changed;  // ranges epoch, after the two times
  Word closed_ns, opened_ns;
  alignas(64) Word prepared;
  uint64_t prepared_ranges;
  ProposalWords prepared_proposals;
  ExactSum sum;
  alignas(64) Word phased;
  alignas(64) BoundaryRecord boundary;
  BoundaryRecord boundary_done[2];  // by parity of n: a death while one is written leaves the one before
  alignas(64) Word verdict;
  uint32_t kind, groups, imports, reason_bytes;
  double grad_norm, grad_scale, clip, loss;
  uint64_t samples;
  LossScale loss_scale;
  ProposalWords verdict_proposals;
  // Enough for every rank's; more than that and the writers' STEP records still say which.
  uint64_t import_ids[kMaxStepImports * 64];
  char reason[512];
  alignas(64) char waits_for[120];
};

namespace {
struct OwnerAreas {
  int64_t consumed, groups, bits, undo, undo_bytes, size;
  OwnerAreas(const JobSpec& spec, int64_t page) {
    Areas a;
    a.Add(page);
    consumed = a.Add(Units(spec) * 8);
    groups = a.Add(GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars)));
    bits = a.Add(TensorWords(spec) * 8);
    // Two journal slots, the reduce block's norm, then the blocks.
    const int64_t blocks = 1 + static_cast<int64_t>(OptimizerPlanes(spec.optimizer).size()) + 1;
    undo_bytes = 128 + blocks * kBlockElements * 4;
    undo = a.Add(undo_bytes * kMaxWorkers);
    size = a.size();
  }
};
}  // namespace

int64_t OwnerRecords::BytesFor(const JobSpec& spec) { return OwnerAreas(spec, sizeof(Page)).size; }

OwnerRecords::OwnerRecords(const JobSpec* spec, char* memory) : spec_(spec), base_(memory) {
  const OwnerAreas a(*spec, sizeof(Page));
  consumed_at_ = a.consumed, groups_at_ = a.groups, bits_at_ = a.bits, undo_at_ = a.undo,
  undo_bytes_ = a.undo_bytes;
}

OwnerRecords::Page* OwnerRecords::page() const { return reinterpret_cast<Page*>(base_); }

std::atomic<uint64_t>& OwnerRecords::Consumed(int unit) const {
  return reinterpret_cast<Word*>(base_ + consumed_at_)[unit];
}

void OwnerRecords::PublishDone(StepId id, const Proposals& decided) {
  Page& p = *page();
  p.done_decided[id.step.value() & 1].Set(decided);
  // Sequentially consistent: whoever publishes last must see that all others have (and then rings).
  p.done.store(Mark::Of(id).word(), std::memory_order_seq_cst);
}

StepId OwnerRecords::Done() const { return Mark(page()->done.load(std::memory_order_seq_cst)).id(); }

Proposals OwnerRecords::Decided() const {
  const Page& p = *page();
  const StepId done = Done();
  Proposals decided = p.done_decided[done.step.value() & 1].Get();
  const BoundaryOffer b = ReadBoundaryDone();
  if (b.n > 0 && b.before.step == done.step.Next()) decided.MergeMax(b.proposals);
  return decided;
}

void OwnerRecords::EnterFrom(const OwnerRecords& other, uint64_t ranges_epoch) {
  // First: what was decided makes the slot count, and a trainer let in then takes its attempt from here.
  page()->rejected.store(other.page()->rejected.load(std::memory_order_seq_cst), std::memory_order_seq_cst);
  for (const BoundaryRecord& record : other.page()->boundary_done) {
    const BoundaryOffer done = ReadBoundary(record);
    if (done.n > 0) PublishBoundaryDone(done);
  }
  const StepId done = other.Done();
  PublishDone(done, other.page()->done_decided[done.step.value() & 1].Get());
  page()->entered.store(ranges_epoch, std::memory_order_seq_cst);
}

void OwnerRecords::SetRangesChange(const RangesChange& change) {
  page()->closed_ns.store(change.closed_ns, std::memory_order_relaxed);
  page()->opened_ns.store(change.opened_ns, std::memory_order_relaxed);
  page()->changed.store(change.ranges_epoch, std::memory_order_release);
}

OwnerRecords::RangesChange OwnerRecords::ReadRangesChange() const {
  RangesChange change;
  change.ranges_epoch = page()->changed.load(std::memory_order_acquire);
  change.closed_ns = static_cast<int64_t>(page()->closed_ns.load(std::memory_order_relaxed));
  change.opened_ns = static_cast<int64_t>(page()->opened_ns.load(std::memory_order_relaxed));
  return change;
}

uint64_t OwnerRecords::Entered() const { return page()->entered.load(std::memory_order_seq_cst); }

void OwnerRecords::PublishRejected(StepId id) {
  page()->rejected.store(Mark::Of(id).word(), std::memory_order_seq_cst);
}

StepId OwnerRecords::Rejected() const { return Mark(page()->rejected.load(std::memory_order_seq_cst)).id(); }

void OwnerRecords::PublishPrepared(const OwnerPrepared& prepared) {
  Page& p = *page();
  Invalidate(p.prepared);
  p.prepared_ranges = prepared.ranges_epoch;
  p.prepared_proposals.Set(prepared.proposals);
  p.sum = prepared.sum_squares;
  p.prepared.store(RecordWord(prepared.id), std::memory_order_seq_cst);
}

std::optional<OwnerPrepared> OwnerRecords::ReadPrepared(StepId id) const {
  const Page& p = *page();
  if (p.prepared.load(std::memory_order_seq_cst) != RecordWord(id)) return std::nullopt;
  OwnerPrepared out;
  out.id = id;
  out.ranges_epoch = p.prepared_ranges;
  out.proposals = p.prepared_proposals.Get();
  out.sum_squares = p.sum;
  return out;
}

void OwnerRecords::PublishPhased(StepId id) {
  page()->phased.store(Mark::Of(id).word(), std::memory_order_seq_cst);
}

void OwnerRecords::WriteBoundary(BoundaryRecord& record, const BoundaryOffer& offer) {
  Invalidate(record.mark);
  record.ranges_epoch = offer.ranges_epoch;
  record.proposals.Set(offer.proposals);
  record.mark.store(Mark::Of(offer.before, offer.n).word(), std::memory_order_seq_cst);
}

BoundaryOffer OwnerRecords::ReadBoundary(const BoundaryRecord& record) {
  const Mark mark(record.mark.load(std::memory_order_seq_cst));
  if (mark.parts() == 0) return {};
  return {mark.id(), mark.parts(), record.ranges_epoch, record.proposals.Get()};
}

void OwnerRecords::PublishBoundary(const BoundaryOffer& offer) { WriteBoundary(page()->boundary, offer); }
void OwnerRecords::PublishBoundaryDone(const BoundaryOffer& done) {
  WriteBoundary(page()->boundary_done[done.n & 1], done);
}
BoundaryOffer OwnerRecords::ReadBoundaryDone() const {
  const BoundaryOffer a = ReadBoundary(page()->boundary_done[0]), b = ReadBoundary(page()->boundary_done[1]);
  return Mark::Of(a.before, a.n) < Mark::Of(b.before, b.n) ? b : a;
}

OwnerPage OwnerRecords::ReadPage(StepId current) const {
  OwnerPage out;
  out.prepared = ReadPrepared(current);
  out.boundary = ReadBoundary(page()->boundary);
  out.boundary_done = ReadBoundaryDone();
  out.done = Done();
  out.phased = Mark(page()->phased.load(std::memory_order_seq_cst)).id();
  return out;
}

void OwnerRecords::WriteVerdict(const Verdict& v) {
  Page& p = *page();
  Invalidate(p.verdict);
  p.kind = static_cast<uint32_t>(v.kind);
  p.grad_norm = v.grad_norm, p.grad_scale = v.grad_scale, p.clip = v.clip, p.loss = v.loss,
  p.samples = v.samples, p.loss_scale = v.loss_scale;
  p.verdict_proposals.Set(v.proposals);
  p.groups = static_cast<uint32_t>(std::min<size_t>(v.groups.size(), GroupCount(*spec_)));
  std::memcpy(base_ + groups_at_, v.groups.data(), p.groups * sizeof(GroupScalars));
  std::copy_n(v.has_grad.begin(), std::min<size_t>(v.has_grad.size(), TensorWords(*spec_)),
              reinterpret_cast<uint64_t*>(base_ + bits_at_));
  p.imports = static_cast<uint32_t>(std::min(v.imports.size(), std::size(p.import_ids)));
  std::copy_n(v.imports.begin(), p.imports, p.import_ids);
  p.reason_bytes = static_cast<uint32_t>(std::min(v.reason.size(), sizeof p.reason));
  std::memcpy(p.reason, v.reason.data(), p.reason_bytes);
  p.verdict.store(RecordWord(v.id), std::memory_order_release);
}

std::optional<Verdict> OwnerRecords::LastVerdict() const {
  const Page& p = *page();
  const Mark mark(p.verdict.load(std::memory_order_acquire));
  if (mark.parts() != 1) return std::nullopt;
  Verdict v;
  v.id = mark.id();
  v.kind = static_cast<VerdictKind>(p.kind);
  v.grad_norm = p.grad_norm, v.grad_scale = p.grad_scale, v.clip = p.clip, v.loss = p.loss,
  v.samples = p.samples, v.loss_scale = p.loss_scale;
  v.proposals = p.verdict_proposals.Get();
  v.groups.resize(std::min<uint32_t>(p.groups, GroupCount(*spec_)));
  std::memcpy(v.groups.data(), base_ + groups_at_, v.groups.size() * sizeof(GroupScalars));
  v.has_grad.resize(TensorWords(*spec_));
  std::memcpy(v.has_grad.data(), base_ + bits_at_, v.has_grad.size() * 8);
  v.imports.assign(p.import_ids, p.import_ids + std::min<size_t>(p.imports, std::size(p.import_ids)));
  v.reason.assign(p.reason, std::min<size_t>(p.reason_bytes, sizeof p.reason));
  // Overwritten while it was read? Then it is not that verdict.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (p.verdict.load(std::memory_order_relaxed) != mark.word()) return std::nullopt;
  return v;
}

std::optional<Verdict> OwnerRecords::ReadVerdict(StepId id) const {
  std::optional<Verdict> v = LastVerdict();
  if (!v.has_value() || v->id != id) return std::nullopt;
  return v;
}

WorkerUndo OwnerRecords::undo(int worker) const {
  char* at = base_ + undo_at_ + worker * undo_bytes_;
  WorkerUndo u;
  u.apply = reinterpret_cast<JournalSlot*>(at);
  u.reduce = u.apply + 1;
  u.reduce_sumsq = reinterpret_cast<double*>(at + 64);
  u.reduce_block = reinterpret_cast<float*>(at + 128);
  u.apply_planes = u.reduce_block + kBlockElements;
  return u;
}

void OwnerRecords::SetWaitsFor(absl::string_view text) {
  char* to = page()->waits_for;
  const size_t n = std::min(text.size(), sizeof Page::waits_for - 1);
  std::memcpy(to, text.data(), n);
  to[n] = 0;
}

std::string OwnerRecords::WaitsFor() const {
  const char* from = page()->waits_for;
  return std::string(from, strnlen(from, sizeof Page::waits_for));
}

}  // namespace sherd::runtime

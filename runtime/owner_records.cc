// OwnerRecords.
#include <algorithm>
#include <cstring>

#include "runtime/records_layout.h"

namespace sherd::runtime {

int64_t OwnerRecords::BytesFor(const JobSpec& spec) { return OwnerAreas(spec, sizeof(Page)).size; }

OwnerRecords::OwnerRecords(const JobSpec* spec, char* memory) : spec_(spec), base_(memory) {
  const OwnerAreas a(*spec, sizeof(Page));
  consumed_at_ = a.consumed, sliced_at_ = a.sliced, nothing_at_ = a.nothing, changed_at_ = a.changed,
  groups_at_ = a.groups, bits_at_ = a.bits, undo_at_ = a.undo, undo_bytes_ = a.undo_bytes;
}

OwnerRecords::Page* OwnerRecords::page() const { return reinterpret_cast<Page*>(base_); }

std::atomic<uint64_t>& OwnerRecords::Consumed(int unit) const {
  return reinterpret_cast<Word*>(base_ + consumed_at_)[unit];
}

std::atomic<uint64_t>& OwnerRecords::Sliced(int unit) const {
  return reinterpret_cast<Word*>(base_ + sliced_at_)[unit];
}

std::atomic<uint64_t>& OwnerRecords::SlicedNothing(int unit) const {
  return reinterpret_cast<Word*>(base_ + nothing_at_)[unit];
}

std::atomic<uint64_t>& OwnerRecords::Changed(int unit) const {
  return reinterpret_cast<Word*>(base_ + changed_at_)[unit];
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

StepId OwnerRecords::Rejected() const {
  StepId last = Mark(page()->rejected.load(std::memory_order_seq_cst)).id();
  for (const BoundaryRecord& record : page()->boundary_done) {
    const StepId before = Mark(record.mark.load(std::memory_order_seq_cst)).id();
    if (before.attempt == 0) continue;
    last = std::max(last, StepId{before.step, static_cast<uint8_t>(before.attempt - 1)});
  }
  return last;
}

void OwnerRecords::PublishPrepared(const OwnerPrepared& prepared) {
  Page& p = *page();
  Invalidate(p.prepared);
  p.prepared_ranges = prepared.ranges_epoch;
  p.prepared_given_up = prepared.given_up ? 1 : 0;
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
  out.given_up = p.prepared_given_up != 0;
  out.proposals = p.prepared_proposals.Get();
  out.sum_squares = p.sum;
  return out;
}

void OwnerRecords::PublishPhased(StepId id) {
  page()->phased.store(Mark::Of(id).word(), std::memory_order_seq_cst);
}

StepId OwnerRecords::Phased() const { return Mark(page()->phased.load(std::memory_order_seq_cst)).id(); }

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
  out.phased = Phased();
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

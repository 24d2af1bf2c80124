// Records as they go to another host: copied there from the page of the same name, and put in place.
#include <algorithm>
#include <cstring>
#include <string>

#include "runtime/records.h"
#include "runtime/records_layout.h"

namespace sherd::runtime {
namespace {

void Append(std::string* out, const void* from, size_t bytes) {
  out->append(static_cast<const char*>(from), bytes);
}

// Takes pieces off the front; false when there is not that much.
class Pieces {
 public:
  explicit Pieces(absl::string_view bytes) : left_(bytes) {}
  const char* Take(size_t bytes) {
    if (left_.size() < bytes) return nullptr;
    const char* at = left_.data();
    left_.remove_prefix(bytes);
    return at;
  }
  bool Read(void* to, size_t bytes) {
    const char* from = Take(bytes);
    if (from == nullptr) return false;
    if (bytes > 0) std::memcpy(to, from, bytes);
    return true;
  }
  size_t size() const { return left_.size(); }

 private:
  absl::string_view left_;
};

struct BoundaryCopy {
  uint64_t mark, ranges_epoch;
  ProposalWords proposals;
};

// The fixed part of an owner's page. A mark of 0: the record was being written, and is left out.
struct OwnerCopy {
  uint64_t done;
  ProposalWords done_decided[2];
  uint64_t rejected, entered, changed, closed_ns, opened_ns;
  uint64_t prepared, prepared_ranges, prepared_given_up;
  ProposalWords prepared_proposals;
  ExactSum sum;
  uint64_t phased;
  BoundaryCopy boundary, boundary_done[2];
  uint64_t verdict;
  uint32_t kind, groups, imports, reason_bytes;
  double grad_norm, grad_scale, clip, loss;
  uint64_t samples;
  LossScale loss_scale;
  ProposalWords verdict_proposals;
  char waits_for[120];
};

// The mark if the record did not change while `copy` copied it; else 0.
template <typename Copy>
uint64_t CopyRecord(const Word& mark, Copy copy) {
  const uint64_t before = mark.load(std::memory_order_seq_cst);
  copy();
  std::atomic_thread_fence(std::memory_order_acquire);
  return mark.load(std::memory_order_relaxed) == before ? before : 0;
}

bool CarriesConsumed(const JobSpec& spec) { return spec.stage >= 2; }

}  // namespace

std::string RankRecords::CopyStep(Step step) const {
  const StepHeader& h = *header(step);
  const char* record = reinterpret_cast<const char*>(&h);
  std::string out;
  const std::optional<StepId> id = HasStep(step);
  if (!id.has_value()) return out;
  const uint64_t blob = std::min<uint64_t>(h.blob_bytes, spec_->max_blob_bytes);
  const uint64_t mark = CopyRecord(h.mark, [&] {
    Append(&out, record, sizeof(StepHeader));
    Append(&out, record + groups_at_, GroupCount(*spec_) * sizeof(GroupScalars));
    Append(&out, record + parts_at_, Units(*spec_) * 2);
    Append(&out, record + bits_at_, TensorWords(*spec_) * 8);
    Append(&out, record + blob_at_, blob);
    Append(&out, record + buffers_at_, BufferArea(*spec_));
  });
  if (mark != RecordWord(*id)) return "";
  return out;
}

std::array<Mark, 2> RankRecords::StepMarks() const {
  std::array<Mark, 2> marks;
  for (uint64_t parity : {0, 1}) {
    const Mark mark(header(Step(parity))->mark.load(std::memory_order_seq_cst));
    if (mark.parts() == 1) marks[parity] = mark;
  }
  return marks;
}

Step RankRecords::StepOf(absl::string_view copy) {
  uint64_t mark = 0;  // the first of a StepHeader
  Pieces pieces(copy);
  return pieces.Read(&mark, sizeof(mark)) && Mark(mark).parts() == 1 ? Mark(mark).id().step : Step(0);
}

bool RankRecords::PutStep(absl::string_view copy) {
  Pieces pieces(copy);
  alignas(StepHeader) char bytes[sizeof(StepHeader)];
  if (!pieces.Read(bytes, sizeof(bytes))) return false;
  const StepHeader& from = *reinterpret_cast<const StepHeader*>(bytes);
  const Mark mark(from.mark.load(std::memory_order_relaxed));
  const size_t groups = GroupCount(*spec_) * sizeof(GroupScalars), parts = Units(*spec_) * 2,
               bits = TensorWords(*spec_) * 8, buffers = BufferArea(*spec_);
  if (mark.parts() != 1 || from.blob_bytes > static_cast<uint64_t>(spec_->max_blob_bytes) ||
      pieces.size() != groups + parts + bits + from.blob_bytes + buffers) {
    return false;
  }
  StepHeader& to = *header(mark.id().step);
  if (Mark(to.mark.load(std::memory_order_relaxed)) >= mark) return true;  // a repetition
  char* record = reinterpret_cast<char*>(&to);
  Invalidate(to.mark);
  std::memcpy(record + sizeof(Word), bytes + sizeof(Word), sizeof(bytes) - sizeof(Word));
  pieces.Read(record + groups_at_, groups);
  pieces.Read(record + parts_at_, parts);
  pieces.Read(record + bits_at_, bits);
  pieces.Read(record + blob_at_, from.blob_bytes);
  pieces.Read(record + buffers_at_, buffers);
  to.mark.store(mark.word(), std::memory_order_seq_cst);
  return true;
}

OwnerRecords::Marks OwnerRecords::ReadMarks() const {
  const Page& p = *page();
  const auto read = [](const Word& w) { return w.load(std::memory_order_seq_cst); };
  return {read(p.done),
          read(p.rejected),
          read(p.entered),
          read(p.changed),
          read(p.verdict),
          read(p.phased),
          read(p.prepared),
          read(p.boundary.mark),
          read(p.boundary_done[0].mark),
          read(p.boundary_done[1].mark)};
}

absl::string_view OwnerRecords::ConsumedBytes() const {
  if (!CarriesConsumed(*spec_)) return {};
  return {base_ + consumed_at_, static_cast<size_t>(Units(*spec_) * 8)};
}

// What comes later in a step is read first: so a copy that has it also has everything before it.
std::string OwnerRecords::Copy() const {
  const Page& p = *page();
  OwnerCopy c;
  std::memset(static_cast<void*>(&c), 0, sizeof(c));
  std::string imports, reason, groups, bits;
  c.entered = p.entered.load(std::memory_order_seq_cst);  // last of all, in a slot that is new
  c.done = p.done.load(std::memory_order_seq_cst);
  for (int i : {0, 1}) c.done_decided[i] = p.done_decided[i];
  c.rejected = p.rejected.load(std::memory_order_seq_cst);
  c.changed = p.changed.load(std::memory_order_acquire);
  c.closed_ns = p.closed_ns.load(std::memory_order_relaxed);
  c.opened_ns = p.opened_ns.load(std::memory_order_relaxed);
  c.verdict = CopyRecord(p.verdict, [&] {
    c.kind = p.kind;
    c.groups = std::min<uint32_t>(p.groups, GroupCount(*spec_));
    c.imports = std::min<uint32_t>(p.imports, std::size(p.import_ids));
    c.reason_bytes = std::min<uint32_t>(p.reason_bytes, sizeof p.reason);
    c.grad_norm = p.grad_norm, c.grad_scale = p.grad_scale, c.clip = p.clip, c.loss = p.loss;
    c.samples = p.samples, c.loss_scale = p.loss_scale, c.verdict_proposals = p.verdict_proposals;
    Append(&imports, p.import_ids, c.imports * sizeof(uint64_t));
    Append(&reason, p.reason, c.reason_bytes);
    Append(&groups, base_ + groups_at_, c.groups * sizeof(GroupScalars));
    Append(&bits, base_ + bits_at_, TensorWords(*spec_) * 8);
  });
  c.phased = p.phased.load(std::memory_order_seq_cst);
  c.prepared = CopyRecord(p.prepared, [&] {
    c.prepared_ranges = p.prepared_ranges, c.prepared_given_up = p.prepared_given_up;
    c.prepared_proposals = p.prepared_proposals, c.sum = p.sum;
  });
  const auto boundary = [](const BoundaryRecord& from, BoundaryCopy* to) {
    to->mark =
        CopyRecord(from.mark, [&] { to->ranges_epoch = from.ranges_epoch, to->proposals = from.proposals; });
  };
  boundary(p.boundary_done[0], &c.boundary_done[0]);
  boundary(p.boundary_done[1], &c.boundary_done[1]);
  boundary(p.boundary, &c.boundary);
  std::memcpy(c.waits_for, p.waits_for, sizeof c.waits_for);
  std::string out(reinterpret_cast<const char*>(&c), sizeof(c));
  for (const std::string* piece : {&imports, &reason, &groups, &bits}) out += *piece;
  for (int64_t u = 0; CarriesConsumed(*spec_) && u < Units(*spec_); ++u) {
    const uint64_t mark = Consumed(static_cast<int>(u)).load(std::memory_order_seq_cst);
    Append(&out, &mark, sizeof(mark));
  }
  return out;
}

bool OwnerRecords::Put(absl::string_view copy) {
  Page& p = *page();
  Pieces pieces(copy);
  OwnerCopy c;
  if (!pieces.Read(&c, sizeof(c))) return false;
  const size_t bits = TensorWords(*spec_) * 8, marks = CarriesConsumed(*spec_) ? Units(*spec_) * 8 : 0;
  if (c.imports > std::size(p.import_ids) || c.reason_bytes > sizeof p.reason ||
      c.groups > static_cast<uint32_t>(GroupCount(*spec_)) ||
      pieces.size() !=
          c.imports * sizeof(uint64_t) + c.reason_bytes + c.groups * sizeof(GroupScalars) + bits + marks) {
    return false;
  }
  const char* imports = pieces.Take(c.imports * sizeof(uint64_t));
  const char* reason = pieces.Take(c.reason_bytes);
  const char* groups = pieces.Take(c.groups * sizeof(GroupScalars));
  const char* tensors = pieces.Take(bits);
  for (size_t u = 0; u < marks / 8; ++u) {
    uint64_t mark = 0;
    pieces.Read(&mark, sizeof(mark));
    Consumed(static_cast<int>(u)).store(mark, std::memory_order_seq_cst);
  }
  // First: whoever sees that an attempt is over, by REJECTED or by a boundary after it, finds its verdict,
  // which is absent for a moment here.
  if (c.verdict != 0 && p.verdict.load(std::memory_order_relaxed) != c.verdict) {
    Invalidate(p.verdict);
    p.kind = c.kind, p.groups = c.groups, p.imports = c.imports, p.reason_bytes = c.reason_bytes;
    p.grad_norm = c.grad_norm, p.grad_scale = c.grad_scale, p.clip = c.clip, p.loss = c.loss;
    p.samples = c.samples, p.loss_scale = c.loss_scale, p.verdict_proposals = c.verdict_proposals;
    std::memcpy(p.import_ids, imports, c.imports * sizeof(uint64_t));
    std::memcpy(p.reason, reason, c.reason_bytes);
    std::memcpy(base_ + groups_at_, groups, c.groups * sizeof(GroupScalars));
    std::memcpy(base_ + bits_at_, tensors, bits);
    p.verdict.store(c.verdict, std::memory_order_seq_cst);
  }
  const auto boundary = [](const BoundaryCopy& from, BoundaryRecord& to) {
    if (from.mark == 0 || to.mark.load(std::memory_order_relaxed) == from.mark) return;
    Invalidate(to.mark);
    to.ranges_epoch = from.ranges_epoch, to.proposals = from.proposals;
    to.mark.store(from.mark, std::memory_order_seq_cst);
  };
  boundary(c.boundary, p.boundary);
  boundary(c.boundary_done[0], p.boundary_done[0]);
  boundary(c.boundary_done[1], p.boundary_done[1]);
  if (c.prepared != 0 &&
      (p.prepared.load(std::memory_order_relaxed) != c.prepared || p.prepared_ranges != c.prepared_ranges)) {
    Invalidate(p.prepared);
    p.prepared_ranges = c.prepared_ranges, p.prepared_given_up = c.prepared_given_up;
    p.prepared_proposals = c.prepared_proposals, p.sum = c.sum;
    p.prepared.store(c.prepared, std::memory_order_seq_cst);
  }
  p.phased.store(c.phased, std::memory_order_seq_cst);
  std::memcpy(p.waits_for, c.waits_for, sizeof c.waits_for - 1);
  p.closed_ns.store(c.closed_ns, std::memory_order_relaxed);
  p.opened_ns.store(c.opened_ns, std::memory_order_relaxed);
  p.changed.store(c.changed, std::memory_order_release);
  p.rejected.store(c.rejected, std::memory_order_seq_cst);
  const uint64_t parity = Mark(c.done).id().step.value() & 1;
  // A slot that enters where it stood already, at step 0, brings what was decided without another DONE.
  if (p.done.load(std::memory_order_relaxed) != c.done ||
      p.entered.load(std::memory_order_relaxed) != c.entered) {
    p.done_decided[parity] = c.done_decided[parity];
    p.done.store(c.done, std::memory_order_seq_cst);
    p.entered.store(c.entered, std::memory_order_seq_cst);
  }
  return true;
}

}  // namespace sherd::runtime

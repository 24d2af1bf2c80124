#include "server/host_outgoing.h"

#include <algorithm>
#include <utility>

#include "absl/strings/string_view.h"
#include "core/host_map.h"
#include "core/value_runs.h"
#include "kernels/optimizer.h"

namespace sherd::server {
namespace {

using runtime::FrameHeader;

// A pass does not stand for longer than this much at one plane: records that became true meanwhile follow.
constexpr int64_t kMostBytes = 64 << 20;

}  // namespace

uint16_t HelloFlags(const runtime::JobMemory& memory) {
  uint16_t flags = memory.control().initialized.load(std::memory_order_acquire) != 0 ? kInitialized : 0;
  if (memory.gather() != nullptr && memory.gather()->share_written.load(std::memory_order_acquire) != 0)
    flags |= kShareWritten;
  return flags;
}

HostOutgoing::HostOutgoing(runtime::JobMemory* memory, int peer, HostBytes* bytes, const HostGather* gather,
                           GatherRequests* requests)
    : memory_(memory), peer_(peer), bytes_(bytes), gather_(gather), requests_(requests) {
  for (const UnitInfo& unit : memory->layout().units()) {
    const bool trainable = unit.blocks.begin < memory->trainable_blocks();
    shares_.push_back(trainable ? HostShare(unit.blocks, peer, memory->grid()) : BlockRange{});
  }
}

void HostOutgoing::Begin(bool peer_initialized) {
  peer_initialized_ = peer_initialized;
  epoch_ = 0;
  owners_.clear();
  sliced_.assign(shares_.size(), 0);
  asked_.assign(shares_.size(), 0);
  said_ = 0;
  steps_.assign(memory_->spec().world_size, {0, 0});
  control_.clear();
}

absl::Status HostOutgoing::FollowAssignment() {
  const std::optional<runtime::Assignment> a = memory_->control().Newest();
  if (!a.has_value() || a->epoch == epoch_) return absl::OkStatus();
  owners_.clear();
  for (int m = 0; m < a->servers; ++m) {
    if (!memory_->IsHere(Slot(m), a->hosts)) continue;
    absl::StatusOr<runtime::OwnerRecords*> records = memory_->owner(Slot(m));
    if (!records.ok()) return records.status();
    Owner owner{m, *records};
    owner.marks.fill(~uint64_t{0});  // a page is sent once, whatever stands in it
    for (size_t u = 0; u < shares_.size(); ++u) {
      const BlockRange unit = memory_->layout().units()[u].blocks;
      // What is gathered is sent when it is asked for; another group has owners of its own.
      const bool sent = memory_->InGroup(peer_) && !memory_->IsGathered(static_cast<int>(u));
      owner.blocks.push_back(sent ? Owned(unit, Slot(m), a->hosts) : BlockRange{});
      const bool norms = memory_->InGroup(peer_) && kernels::Info(memory_->spec().optimizer).norms &&
                         unit.begin < memory_->trainable_blocks();
      owner.norms.push_back(norms ? Owned(unit, Slot(m), a->hosts) : BlockRange{});
      owner.slices.push_back(!shares_[u].empty() && !SlicedBy(unit, Slot(m), a->hosts).empty());
    }
    // Of a peer that has nothing yet what stands here is sent as initial values, or is the same there.
    owner.changed.assign(shares_.size(), epoch_ == 0 && !peer_initialized_ ? 0 : ~uint64_t{0});
    owners_.push_back(std::move(owner));
  }
  epoch_ = a->epoch;
  return absl::OkStatus();
}

absl::StatusOr<bool> HostOutgoing::Pass(runtime::Link& link) {
  if (absl::Status s = FollowAssignment(); !s.ok()) return s;
  bool sent = false;
  if (gather_ != nullptr) {
    absl::StatusOr<bool> some = SendGathers(link);
    if (!some.ok()) return some;
    sent |= *some;
  }
  if (memory_->control().initialized.load(std::memory_order_acquire) != 0) {
    if (!peer_initialized_ && memory_->place().index == 0) {
      if (absl::Status s = SendInitialValues(link); !s.ok()) return s;
      peer_initialized_ = true;
      sent = true;
    }
    absl::StatusOr<bool> some = SendSlices(link);
    if (!some.ok()) return some;
    sent |= *some;
  }
  absl::StatusOr<bool> some = SendSteps(link);
  if (!some.ok()) return some;
  sent |= *some;
  for (Owner& owner : owners_) {
    some = SendOwner(link, owner);
    if (!some.ok()) return some;
    sent |= *some;
  }
  if (memory_->place().index == 0) {
    some = SendControl(link);
    if (!some.ok()) return some;
    sent |= *some;
  }
  return sent;
}

absl::Status HostOutgoing::Send(runtime::Link& link, FrameHeader header, HostFrame type, const void* payload,
                                uint64_t length, std::atomic<uint64_t>* count) {
  header.type = static_cast<uint16_t>(type);
  const iovec piece = {const_cast<void*>(payload), length};
  absl::Status s =
      link.Send(header, length == 0 ? absl::Span<const iovec>() : absl::MakeConstSpan(&piece, 1));
  if (s.ok()) count->fetch_add(length, std::memory_order_relaxed);
  return s;
}

absl::Status HostOutgoing::SendBlocks(runtime::Link& link, uint32_t plane, BlockRange blocks) {
  const bool masters = plane == kMasters;
  const int64_t block_bytes = kBlockElements * (masters ? 4 : SizeOf(memory_->spec().compute));
  const char* base = masters ? reinterpret_cast<const char*>(memory_->plane(0))
                             : reinterpret_cast<const char*>(memory_->compute());
  for (int64_t at = blocks.begin * block_bytes; at < blocks.end * block_bytes; at += kMostBytes) {
    FrameHeader header;
    header.stream = plane;
    header.offset = static_cast<uint64_t>(at);
    const int64_t length = std::min(kMostBytes, blocks.end * block_bytes - at);
    absl::Status s = Send(link, header, HostFrame::kParameters, base + at, length, &bytes_->parameters);
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status HostOutgoing::SendValues(runtime::Link& link, BlockRange blocks) {
  for (const ValueRun& run : ValueRuns(memory_->layout(), blocks)) {
    if (absl::Status s = SendBlocks(link, run.masters ? kMasters : kCompute, run.blocks); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Rank 0 has written them here: what the peer is going to own, and what its trainers read without gathering.
absl::Status HostOutgoing::SendInitialValues(runtime::Link& link) {
  const Layout& layout = memory_->layout();
  const bool rounded = memory_->compute() != nullptr;
  absl::Status s;
  for (size_t u = 0; u < layout.units().size(); ++u) {
    const BlockRange unit = layout.units()[u].blocks;
    const bool gathered = memory_->IsGathered(static_cast<int>(u));
    if (gathered && memory_->spec().gather.initial_shares) continue;
    const BlockRange share = HostShare(unit, peer_, memory_->grid());
    if (s.ok() && (gathered || rounded)) s = SendBlocks(link, kMasters, share);
    if (s.ok() && gathered && rounded) s = SendBlocks(link, kCompute, share);
    if (s.ok() && !gathered) s = SendValues(link, unit);
  }
  if (!s.ok()) return s;
  const absl::Span<char> buffers = memory_->rank(Rank(0)).buffers(Step(0));
  return Send(link, {}, HostFrame::kBuffers, buffers.data(), buffers.size(), &bytes_->records);
}

absl::StatusOr<bool> HostOutgoing::SendSlices(runtime::Link& link) {
  bool sent = false;
  const int64_t block_bytes = memory_->wire_block_bytes();
  for (size_t u = 0; u < shares_.size(); ++u) {
    if (shares_[u].empty()) continue;
    uint64_t mark = ~uint64_t{0};
    bool nothing = false;
    for (const Owner& owner : owners_) {
      if (!owner.slices[u]) continue;
      mark = std::min(mark, owner.records->Sliced(u).load(std::memory_order_acquire));
      nothing = owner.records->SlicedNothing(u).load(std::memory_order_acquire) == mark;
    }
    if (mark == ~uint64_t{0} || mark == 0 || mark == sliced_[u]) continue;
    FrameHeader header;
    header.stream = static_cast<uint32_t>(u);
    header.mark = mark;
    header.flags = nothing ? kNothing : 0;
    header.offset = static_cast<uint64_t>(shares_[u].begin * block_bytes);
    absl::Status s = Send(link, header, HostFrame::kSlice, memory_->outbox() + header.offset,
                          nothing ? 0 : shares_[u].size() * block_bytes, &bytes_->gradients);
    if (!s.ok()) return s;
    sliced_[u] = mark;
    sent = true;
  }
  return sent;
}

absl::StatusOr<bool> HostOutgoing::SendSteps(runtime::Link& link) {
  bool sent = false;
  for (int r = 0; r < memory_->spec().world_size; ++r) {
    if (!memory_->IsHere(Rank(r))) continue;
    const std::array<Mark, 2> marks = memory_->rank(Rank(r)).StepMarks();
    for (int i : {0, 1}) {
      if (marks[i].word() == 0 || marks[i].word() == steps_[r][i]) continue;
      const std::string copy = memory_->rank(Rank(r)).CopyStep(marks[i].id().step);
      if (copy.empty()) continue;  // being written: the next pass has it
      FrameHeader header;
      header.stream = static_cast<uint32_t>(r);
      absl::Status s = Send(link, header, HostFrame::kStep, copy.data(), copy.size(), &bytes_->records);
      if (!s.ok()) return s;
      steps_[r][i] = marks[i].word();
      sent = true;
    }
  }
  return sent;
}

absl::StatusOr<bool> HostOutgoing::SendOwner(runtime::Link& link, Owner& owner) {
  const runtime::OwnerRecords::Marks marks = owner.records->ReadMarks();
  // What changes without a mark of its own; empty unless it matters to other hosts. As it is before the copy:
  // what changes while this is sent is not in it.
  std::string consumed(owner.records->ConsumedBytes());
  const bool record = marks != owner.marks || consumed != owner.consumed;
  std::string copy;
  if (record) copy = owner.records->Copy();
  // After the copy was taken: so all that it says is stored goes first.
  bool sent = false;
  const bool whole = memory_->control().initialized.load(std::memory_order_acquire) != 0;
  for (size_t u = 0; whole && u < owner.blocks.size(); ++u) {
    const uint64_t changed = owner.records->Changed(u).load(std::memory_order_acquire);
    if (changed == owner.changed[u] || owner.blocks[u].empty()) continue;
    absl::Status s = SendValues(link, owner.blocks[u]);
    if (!s.ok()) return s;
    owner.changed[u] = changed;
    sent = true;
  }
  if (!record) return sent;
  if (absl::Status s = SendNorms(link, owner); !s.ok()) return s;
  FrameHeader header;
  header.stream = static_cast<uint32_t>(owner.slot);
  absl::Status s = Send(link, header, HostFrame::kOwner, copy.data(), copy.size(), &bytes_->records);
  if (!s.ok()) return s;
  owner.marks = marks;
  owner.consumed = std::move(consumed);
  return true;
}

// They stand from PHASED until all owners, the peer's among them, have done the step and prepared the next.
absl::Status HostOutgoing::SendNorms(runtime::Link& link, Owner& owner) {
  const StepId phased = owner.records->Phased();
  if (phased == owner.phased) return absl::OkStatus();
  for (size_t u = 0; u < owner.norms.size(); ++u) {
    const BlockRange own = owner.norms[u];
    if (own.empty()) continue;
    FrameHeader header;
    header.stream = static_cast<uint32_t>(u);
    header.offset = static_cast<uint64_t>(own.begin) * kNormBytes;
    absl::Status s = Send(link, header, HostFrame::kNorms, memory_->block_norms() + 2 * own.begin,
                          static_cast<uint64_t>(own.size()) * kNormBytes, &bytes_->records);
    if (!s.ok()) return s;
  }
  owner.phased = phased;
  return absl::OkStatus();
}

absl::StatusOr<bool> HostOutgoing::SendControl(runtime::Link& link) {
  std::string copy = memory_->control().Copy();
  for (int r = 0; r < memory_->spec().world_size; ++r) {
    const runtime::MemberEntry::Copy entry = memory_->trainer(Rank(r)).Read();
    copy.append(reinterpret_cast<const char*>(&entry), sizeof(entry));
  }
  if (copy == control_) return false;
  // It must not say that the values are there before they have been sent: the next pass does both.
  if (!peer_initialized_ && memory_->control().initialized.load(std::memory_order_acquire) != 0) return true;
  absl::Status s = Send(link, {}, HostFrame::kControl, copy.data(), copy.size(), &bytes_->records);
  if (!s.ok()) return s;
  control_ = std::move(copy);
  return true;
}

absl::StatusOr<bool> HostOutgoing::SendGathers(runtime::Link& link) {
  bool sent = false;
  if (const uint16_t flags = HelloFlags(*memory_); flags != said_) {
    FrameHeader hello;
    hello.type = static_cast<uint16_t>(HostFrame::kHello);
    hello.flags = said_ = flags;
    if (absl::Status s = link.Send(hello); !s.ok()) return s;
    sent = true;
  }
  // What this host waits for is asked before the peer is answered, which may take long.
  for (;;) {
    absl::StatusOr<bool> asked = SendWants(link);
    if (!asked.ok()) return asked;
    sent |= *asked;
    GatherRequests::Request request;
    if (!requests_->Take(&request)) return sent;
    if (absl::Status s = SendGathered(link, request); !s.ok()) return s;
    sent = true;
  }
}

absl::StatusOr<bool> HostOutgoing::SendWants(runtime::Link& link) {
  std::vector<std::pair<uint64_t, size_t>> wants;  // in the order in which they came up
  for (size_t u = 0; u < asked_.size(); ++u) {
    const uint64_t request = gather_->Asked(static_cast<int>(u));
    if (request != 0 && request != asked_[u]) wants.emplace_back(request, u);
  }
  std::sort(wants.begin(), wants.end());
  bool sent = false;
  for (const auto& [request, u] : wants) {
    asked_[u] = request;
    const BlockRange unit = memory_->layout().units()[u].blocks;
    if (!memory_->InGroup(peer_) || HostShare(unit, peer_, memory_->grid()).empty() ||
        gather_->HasArrived(peer_, static_cast<int>(u), request))
      continue;
    FrameHeader header;
    header.stream = static_cast<uint32_t>(u);
    header.mark = request;
    absl::Status s = Send(link, header, HostFrame::kWant, nullptr, 0, &bytes_->records);
    if (!s.ok()) return s;
    sent = true;
  }
  return sent;
}

absl::Status HostOutgoing::SendGathered(runtime::Link& link, const GatherRequests::Request& request) {
  const Layout& layout = memory_->layout();
  const BlockRange share =
      HostShare(layout.units()[request.unit].blocks, memory_->place().index, memory_->grid());
  const std::vector<ValueRun> runs = ValueRuns(layout, share);
  for (size_t i = 0; i < runs.size(); ++i) {
    const int64_t block_bytes = memory_->ParameterBlockBytes(runs[i].masters);
    const int64_t end = runs[i].blocks.end * block_bytes;
    for (int64_t at = runs[i].blocks.begin * block_bytes; at < end; at += kMostBytes) {
      FrameHeader header;
      header.stream = static_cast<uint32_t>(request.unit);
      header.mark = request.id;
      header.offset = static_cast<uint64_t>(at);
      header.flags = runs[i].masters ? 0 : kOfCompute;
      if (i + 1 == runs.size() && at + kMostBytes >= end) header.flags |= kLast;
      absl::Status s = Send(link, header, HostFrame::kGathered, memory_->parameters(runs[i].masters) + at,
                            std::min(kMostBytes, end - at), &bytes_->gathers);
      if (!s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

}  // namespace sherd::server

#include "server/host_incoming.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "kernels/optimizer.h"
#include "server/host_frames.h"

namespace sherd::server {
namespace {

using runtime::FrameHeader;

// Most bytes of a record: those of the largest page.
uint64_t MostRecordBytes(const runtime::JobMemory& memory) {
  const JobSpec& spec = memory.spec();
  return static_cast<uint64_t>(
      std::max(runtime::RankRecords::BytesFor(spec), runtime::OwnerRecords::BytesFor(spec)) +
      int64_t{sizeof(runtime::ControlPage)} + spec.world_size * int64_t{sizeof(runtime::MemberEntry::Copy)});
}

}  // namespace

absl::Status HostIncoming::Wrong(const FrameHeader& h) const {
  return absl::DataLossError(absl::StrCat("host ", peer_, " sent a frame that does not fit this job (type ",
                                          h.type, ", stream ", h.stream, ", offset ", h.offset, ", ",
                                          h.length, " bytes): run one version of Sherd on all hosts"));
}

absl::StatusOr<std::string> HostIncoming::Payload(runtime::Link& link, const FrameHeader& header) {
  if (header.length > MostRecordBytes(*memory_)) return Wrong(header);
  std::string bytes(header.length, '\0');
  if (absl::Status s = link.ReceiveInto(bytes.data(), bytes.size()); !s.ok()) return s;
  return bytes;
}

absl::Status HostIncoming::Take(runtime::Link& link, const FrameHeader& header) {
  const HostFrame type = static_cast<HostFrame>(header.type);
  if (type == HostFrame::kSlice) return TakeSlice(link, header);
  if (type == HostFrame::kParameters) return TakeParameters(link, header);
  if (type == HostFrame::kGathered) return TakeGathered(link, header);
  if (type == HostFrame::kNorms) return TakeNorms(link, header);
  absl::StatusOr<std::string> payload = Payload(link, header);
  if (!payload.ok()) return payload.status();
  absl::Status s;
  switch (type) {
    case HostFrame::kControl:
      s = TakeControl(*payload);
      break;
    case HostFrame::kStep:
      s = TakeStep(static_cast<int>(std::min<uint32_t>(header.stream, kMaxWorldSize)), *payload);
      break;
    case HostFrame::kOwner:
      s = TakeOwner(static_cast<int>(std::min<uint32_t>(header.stream, runtime::kMaxSlots)), *payload);
      break;
    case HostFrame::kWant:
      s = TakeWant(header);
      break;
    case HostFrame::kBuffers:
      s = TakeBuffers(*payload);
      break;
    default:
      s = absl::InvalidArgumentError("unknown");
  }
  return absl::IsInvalidArgument(s) ? Wrong(header) : s;
}

absl::Status HostIncoming::TakeControl(const std::string& payload) {
  const size_t members = memory_->spec().world_size * sizeof(runtime::MemberEntry::Copy);
  if (peer_ != 0 || payload.size() < members) return absl::InvalidArgumentError("control");
  const absl::string_view all(payload);
  for (int r = 0; r < memory_->spec().world_size; ++r) {
    runtime::MemberEntry::Copy entry;
    std::memcpy(&entry, all.data() + all.size() - members + r * sizeof(entry), sizeof(entry));
    memory_->trainer(Rank(r)).Put(entry);
  }
  if (!memory_->control().Put(all.substr(0, all.size() - members)))
    return absl::InvalidArgumentError("control");
  memory_->control().bell.Ring();
  RingTrainers();
  RingOwners();
  return absl::OkStatus();
}

absl::Status HostIncoming::TakeStep(int rank, const std::string& payload) {
  const int world = memory_->spec().world_size;
  if (rank >= world || memory_->HostOf(Rank(rank)) != peer_ || !memory_->rank(Rank(rank)).PutStep(payload)) {
    return absl::InvalidArgumentError("step");
  }
  RingOwners();
  return absl::OkStatus();
}

absl::Status HostIncoming::TakeOwner(int slot, const std::string& payload) {
  const std::optional<runtime::Assignment> a = memory_->control().Newest();
  // Before the first host's control page has come nobody here could make anything of it: it comes again.
  if (slot >= runtime::kMaxSlots ||
      (a.has_value() && (slot >= a->servers || a->hosts.HostOf(Slot(slot)) != peer_))) {
    return absl::InvalidArgumentError("owner");
  }
  absl::StatusOr<runtime::OwnerRecords*> page = memory_->owner(Slot(slot));
  if (!page.ok()) return page.status();
  if (!(*page)->Put(payload)) return absl::InvalidArgumentError("owner");
  RingOwners();
  RingTrainers();
  memory_->control().bell.Ring();
  return absl::OkStatus();
}

absl::Status HostIncoming::TakeSlice(runtime::Link& link, const FrameHeader& h) {
  if (h.stream >= memory_->layout().units().size()) return Wrong(h);
  const int unit = static_cast<int>(h.stream);
  const BlockRange share =
      HostShare(memory_->layout().units()[unit].blocks, memory_->place().index, memory_->grid());
  const int64_t block_bytes = memory_->wire_block_bytes();
  const bool nothing = (h.flags & kNothing) != 0;
  if (share.begin >= memory_->trainable_blocks() || share.empty() ||
      h.offset != static_cast<uint64_t>(share.begin * block_bytes) ||
      h.length != static_cast<uint64_t>(nothing ? 0 : share.size() * block_bytes)) {
    return Wrong(h);
  }
  std::atomic<uint64_t>& received = memory_->Received(peer_, unit);
  // Said again after a connection was lost.
  if (received.load(std::memory_order_acquire) >= h.mark) return link.Skip(h.length);
  if (absl::Status s = link.ReceiveInto(memory_->inbox(peer_) + h.offset, h.length); !s.ok()) return s;
  if (nothing) memory_->ReceivedNothing(peer_, unit).store(h.mark, std::memory_order_release);
  received.store(h.mark, std::memory_order_seq_cst);
  RingOwners();
  return absl::OkStatus();
}

absl::Status HostIncoming::TakeParameters(runtime::Link& link, const FrameHeader& h) {
  char* base = nullptr;
  uint64_t bytes = 0;
  if (h.stream == kMasters) {
    base = reinterpret_cast<char*>(memory_->plane(0));
    bytes = static_cast<uint64_t>(memory_->layout().total_blocks()) * kBlockElements * 4;
  } else if (h.stream == kCompute && memory_->compute() != nullptr) {
    base = reinterpret_cast<char*>(memory_->compute());
    bytes = static_cast<uint64_t>(memory_->layout().total_blocks()) * kBlockElements * 2;
  }
  if (base == nullptr || h.offset > bytes || h.length > bytes - h.offset) return Wrong(h);
  return link.ReceiveInto(base + h.offset, h.length);
}

absl::Status HostIncoming::TakeNorms(runtime::Link& link, const FrameHeader& h) {
  if (h.stream >= memory_->layout().units().size() || !kernels::Info(memory_->spec().optimizer).norms)
    return Wrong(h);
  const BlockRange unit = memory_->layout().units()[h.stream].blocks;
  const BlockRange share = HostShare(unit, peer_, memory_->grid());
  const auto begin = static_cast<uint64_t>(share.begin * kNormBytes);
  const auto end = static_cast<uint64_t>(share.end * kNormBytes);
  if (unit.begin >= memory_->trainable_blocks() || h.offset < begin || h.offset > end ||
      h.length > end - h.offset) {
    return Wrong(h);
  }
  return link.ReceiveInto(reinterpret_cast<char*>(memory_->block_norms()) + h.offset, h.length);
}

absl::Status HostIncoming::TakeWant(const FrameHeader& h) {
  if (requests_ == nullptr || h.stream >= memory_->layout().units().size() || h.mark == 0 ||
      !memory_->IsGathered(static_cast<int>(h.stream))) {
    return absl::InvalidArgumentError("want");
  }
  requests_->Put({static_cast<int>(h.stream), h.mark});
  memory_->control().link_bell.Ring();
  return absl::OkStatus();
}

absl::Status HostIncoming::TakeGathered(runtime::Link& link, const FrameHeader& h) {
  const int unit = static_cast<int>(h.stream);
  const bool masters = (h.flags & kOfCompute) == 0;
  if (gather_ == nullptr || h.stream >= memory_->layout().units().size() || !memory_->IsGathered(unit) ||
      memory_->parameters(masters) == nullptr) {
    return Wrong(h);
  }
  const BlockRange share = HostShare(memory_->layout().units()[unit].blocks, peer_, memory_->grid());
  const auto begin = static_cast<uint64_t>(share.begin * memory_->ParameterBlockBytes(masters));
  const auto end = static_cast<uint64_t>(share.end * memory_->ParameterBlockBytes(masters));
  if (h.offset < begin || h.offset > end || h.length > end - h.offset) return Wrong(h);
  // Whoever wanted it has gone, or wants newer values: those were asked for after these.
  if (!gather_->Wants(unit, h.mark)) return link.Skip(h.length);
  absl::Status s = link.ReceiveInto(memory_->parameters(masters) + h.offset, h.length);
  if (s.ok() && (h.flags & kLast) != 0) gather_->Arrived(peer_, unit, h.mark);
  return s;
}

absl::Status HostIncoming::TakeBuffers(const std::string& payload) {
  const absl::Span<char> buffers = memory_->rank(Rank(0)).buffers(Step(0));
  if (peer_ != 0 || payload.size() != buffers.size()) return absl::InvalidArgumentError("buffers");
  std::copy(payload.begin(), payload.end(), buffers.begin());
  return absl::OkStatus();
}

void HostIncoming::RingOwners() {
  const std::optional<runtime::Assignment> a = memory_->control().Newest();
  for (int m = 0; a.has_value() && m < a->servers; ++m) {
    if (memory_->IsHere(Slot(m), a->hosts)) memory_->control().servers[m].bell.Ring();
  }
}

void HostIncoming::RingTrainers() {
  for (int r = 0; r < memory_->spec().world_size; ++r) {
    if (memory_->IsHere(Rank(r))) memory_->trainer(Rank(r)).bell.Ring();
  }
}

}  // namespace sherd::server

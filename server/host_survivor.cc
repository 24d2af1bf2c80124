#include "server/host_survivor.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "core/value_runs.h"
#include "runtime/crc32c.h"

namespace sherd::server {
namespace {

using runtime::ControlPage;
using runtime::JobMemory;

constexpr int64_t kPieceBytes = 1 << 20;
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);

absl::Status CheckHost(const JobMemory& memory, int host) {
  const runtime::HostPlace& place = memory.place();
  if (place.several() && host >= 0 && host < place.count && host != place.index) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("host=", host, " is none of the other hosts of this job, which has ", place.count));
}

absl::Status Replaced(int host) {
  return absl::FailedPreconditionError(
      absl::StrCat("host ", host, ": another one has taken this place since: end this one"));
}

void RingAll(JobMemory& memory) {
  ControlPage& control = memory.control();
  for (runtime::MemberEntry& entry : control.servers) entry.bell.Ring();
  for (int r = 0; r < memory.spec().world_size; ++r) memory.trainer(Rank(r)).bell.Ring();
  control.bell.Ring();
}

// Raises the fence and waits until the agent stands by it.
absl::Status Raise(JobMemory& memory, const v1::FenceHostRequest& request,
                   const std::function<bool()>& go_on) {
  ControlPage::LinkState& link = memory.control().links[request.host()];
  uint64_t before = link.oldest.load(std::memory_order_seq_cst);
  while (before < request.incarnation() &&
         !link.oldest.compare_exchange_weak(before, request.incarnation())) {
  }
  if (before > request.incarnation()) return Replaced(request.host());
  runtime::DoorbellWord& bell = memory.control().bell;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    if (link.fenced.load(std::memory_order_seq_cst) >= request.incarnation()) return absl::OkStatus();
    if (!go_on()) return absl::CancelledError("the call was given up");
    bell.Wait(ticket, kLookAgain, runtime::SpinPolicy::None());
  }
}

// Marks of what this host has, when nothing is being stored and all parameters of the step are here.
absl::StatusOr<v1::StatePiece::Stand> StandOf(JobMemory& memory, const runtime::Assignment& a, int lost) {
  v1::StatePiece::Stand stand;
  std::optional<StepId> done;
  for (int m = 0; m < a.servers; ++m) {
    if (a.hosts.HostOf(Slot(m)) == lost) continue;
    const absl::StatusOr<runtime::OwnerRecords*> page = memory.owner(Slot(m));
    if (!page.ok()) return page.status();
    if (done.has_value() && (*page)->Done() != *done)
      return absl::UnavailableError("a step is being stored: repeat the call");
    done = (*page)->Done();
    if (stand.owner().empty() && memory.IsHere(Slot(m), a.hosts)) stand.set_owner((*page)->Copy());
  }
  stand.set_step(done.has_value() ? done->step.value() : 0);
  const size_t counts = memory.layout().tensors().size() + 1;  // and the job's
  for (size_t i = 0; i < counts; ++i) {
    stand.add_update_counts(memory.tensor_steps(Step(0))[i].load(std::memory_order_relaxed));
    stand.add_update_counts_odd(memory.tensor_steps(Step(1))[i].load(std::memory_order_relaxed));
  }
  return stand;
}

}  // namespace

absl::Status FenceHostHere(JobMemory& memory, const v1::FenceHostRequest& request, const SendRecord& send,
                           const std::function<bool()>& go_on) {
  if (absl::Status s = CheckHost(memory, request.host()); !s.ok()) return s;
  const ControlPage& control = memory.control();
  if (request.incarnation() != 0) {
    if (absl::Status s = Raise(memory, request, go_on); !s.ok()) return s;
  }
  const ControlPage::LinkState& link = control.links[request.host()];
  const std::optional<runtime::Assignment> a = control.Newest();
  const absl::Status ended = absl::CancelledError("the call was given up");
  v1::HostRecord record;
  v1::HostRecord::About* about = record.mutable_about();
  about->set_met(link.state.load(std::memory_order_acquire) != ControlPage::LinkState::kNever);
  about->set_initialized(control.initialized.load(std::memory_order_acquire) != 0);
  about->set_incarnation(link.oldest.load(std::memory_order_seq_cst));
  for (int m = 0; a.has_value() && m < a->servers; ++m) about->add_host_of_slot(a->hosts.HostOf(Slot(m)));
  if (a.has_value()) about->set_ranges_epoch(a->epoch);
  if (!send(record)) return ended;
  if (request.incarnation() == 0 || !a.has_value()) return absl::OkStatus();
  const auto theirs = [&](int host) { return host == request.host() || host == memory.place().index; };
  for (int m = 0; m < a->servers; ++m) {
    if (!theirs(a->hosts.HostOf(Slot(m)))) continue;
    const absl::StatusOr<runtime::OwnerRecords*> page = memory.owner(Slot(m));
    if (!page.ok()) return page.status();
    record.Clear();
    record.set_index(m);
    record.set_owner((*page)->Copy());
    if (!send(record)) return ended;
  }
  for (int r = 0; r < memory.spec().world_size; ++r) {
    if (!theirs(memory.HostOf(Rank(r)))) continue;
    for (const Mark mark : memory.rank(Rank(r)).StepMarks()) {
      if (mark.word() == 0) continue;
      record.Clear();
      record.set_index(r);
      record.set_step(memory.rank(Rank(r)).CopyStep(mark.id().step));
      if (!record.step().empty() && !send(record)) return ended;
    }
  }
  return absl::OkStatus();
}

absl::Status TellRecordHere(JobMemory& memory, const v1::TellRecordRequest& request) {
  if (absl::Status s = CheckHost(memory, request.host()); !s.ok()) return s;
  if (memory.control().links[request.host()].oldest.load() != request.incarnation())
    return Replaced(request.host());
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  const v1::HostRecord& record = request.record();
  const int index = record.index();
  if (request.cut() != 0) {
    memory.control().links[request.host()].cut.store(request.cut(), std::memory_order_seq_cst);
    RingAll(memory);
    return absl::OkStatus();
  }
  const absl::Status wrong =
      absl::InvalidArgumentError(absl::StrCat("record ", index, " is not one of host ", request.host()));
  if (record.has_owner()) {
    if (!a.has_value() || index < 0 || index >= a->servers ||
        a->hosts.HostOf(Slot(index)) != request.host()) {
      return wrong;
    }
    const absl::StatusOr<runtime::OwnerRecords*> page = memory.owner(Slot(index));
    if (!page.ok()) return page.status();
    if (!(*page)->Put(record.owner())) return wrong;
  } else {
    const bool theirs =
        index >= 0 && index < memory.spec().world_size && memory.HostOf(Rank(index)) == request.host();
    if (!record.has_step() || !theirs || !memory.rank(Rank(index)).PutStep(record.step())) return wrong;
  }
  RingAll(memory);
  return absl::OkStatus();
}

absl::Status CopyStateHere(JobMemory& memory, const v1::CopyStateRequest& request, const SendPiece& send) {
  if (absl::Status s = CheckHost(memory, request.host()); !s.ok()) return s;
  const HostGrid grid = memory.grid();
  if (grid.Counterpart(request.host(), memory.place().index) != memory.place().index) {
    return absl::InvalidArgumentError(
        absl::StrCat("host ", memory.place().index, " has not the share of host ", request.host()));
  }
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  if (!a.has_value()) return absl::FailedPreconditionError("the job has no owners yet");
  const absl::StatusOr<v1::StatePiece::Stand> before = StandOf(memory, *a, request.host());
  if (!before.ok()) return before.status();
  const absl::Status ended = absl::CancelledError("the call was given up");
  v1::StatePiece piece;
  *piece.mutable_stand() = *before;
  if (!send(piece)) return ended;
  const auto put = [&](std::optional<int> plane, const char* base, BlockRange blocks) {
    const int64_t block_bytes = kBlockElements * (plane.has_value() ? 4 : 2);
    for (int64_t at = blocks.begin * block_bytes; at < blocks.end * block_bytes; at += kPieceBytes) {
      piece.Clear();
      plane.has_value() ? piece.set_plane(*plane) : piece.set_rounded(true);
      piece.set_offset(at);
      piece.set_data(base + at, std::min(kPieceBytes, blocks.end * block_bytes - at));
      piece.set_crc32c(runtime::Crc32c(piece.data()));
      if (!send(piece)) return false;
    }
    return true;
  };
  for (size_t u = 0; u < memory.layout().units().size(); ++u) {
    const UnitInfo& unit = memory.layout().units()[u];
    const BlockRange share = HostShare(unit.blocks, memory.place().index, grid);
    for (int p = 0; p < memory.planes(); ++p) {
      const BlockRange blocks{share.begin, std::min(share.end, memory.plane_blocks(p))};
      if (!put(p, reinterpret_cast<const char*>(memory.plane(p)), blocks)) return ended;
    }
    const char* compute = reinterpret_cast<const char*>(memory.compute());
    if (compute != nullptr && !put(std::nullopt, compute, share)) return ended;
    // And what its trainers read of others' blocks without gathering it: on both sides of the share.
    if (memory.IsGathered(static_cast<int>(u))) continue;
    for (const ValueRun& run : ValueRuns(memory.layout(), unit.blocks)) {
      const std::optional<int> plane = run.masters ? std::optional<int>(0) : std::nullopt;
      const char* base = memory.parameters(run.masters);
      if (!put(plane, base, {run.blocks.begin, std::min(run.blocks.end, share.begin)}) ||
          !put(plane, base, {std::max(run.blocks.begin, share.end), run.blocks.end})) {
        return ended;
      }
    }
  }
  const absl::StatusOr<v1::StatePiece::Stand> after = StandOf(memory, *a, request.host());
  if (!after.ok()) return after.status();
  if (after->step() != before->step())
    return absl::UnavailableError("a step was stored meanwhile: repeat the call");
  piece.Clear();
  *piece.mutable_stand() = *after;
  return send(piece) ? absl::OkStatus() : ended;
}

}  // namespace sherd::server

#include "server/snapshots.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "server/snapshot_reader.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::ControlPage;
using runtime::JobMemory;
using runtime::MutexLock;
using runtime::SnapshotEntry;

int64_t BlockBytes(uint64_t plane_mask) { return SnapshotPool::PlanesIn(plane_mask) * kBlockElements * 4; }

bool HasToken(const SnapshotEntry& e, const std::string& token) {
  char padded[sizeof(e.token)] = {};
  std::memcpy(padded, token.data(), std::min(token.size(), sizeof(padded)));
  return std::memcmp(padded, e.token, sizeof(padded)) == 0;
}

void RingSlots(ControlPage& control) {
  for (runtime::MemberEntry& m : control.servers) m.bell.Ring();
}

std::string WhoIsWaitedFor(JobMemory& memory) {
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  for (int m = 0; a.has_value() && m < a->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
    if (owner.ok() && !(*owner)->WaitsFor().empty())
      return absl::StrCat("the owner of slot ", m, " waits: ", (*owner)->WaitsFor());
  }
  return "not every owner came to the end of a step";
}

SnapshotState StateOf(const SnapshotEntry& e) {
  SnapshotState s;
  s.id = e.id.load(std::memory_order_acquire);
  const uint64_t cut_plus_1 = e.cut_plus_1.load(std::memory_order_acquire);
  s.step = Step(cut_plus_1 == 0 ? 0 : cut_plus_1 - 1);
  s.plane_mask = e.plane_mask.load();
  s.pool_bytes = static_cast<int64_t>(e.pool_blocks.load()) * BlockBytes(s.plane_mask);
  s.pool_used_bytes = std::min(s.pool_bytes, static_cast<int64_t>(e.used.load()) * BlockBytes(s.plane_mask));
  s.wait_when_full = e.wait_when_full.load() != 0;
  s.overflowed = e.overflowed.load() != 0;
  s.idle_timeout = absl::Nanoseconds(e.idle_ns.load());
  return s;
}

}  // namespace

absl::StatusOr<uint64_t> Snapshots::Begin(JobMemory& memory, const SnapshotOptions& options) {
  ControlPage& control = memory.control();
  SnapshotEntry* free = nullptr;
  uint64_t id = control.proposals.snapshot.load(std::memory_order_acquire);
  for (SnapshotEntry& e : control.snapshots) {
    const uint64_t there = e.id.load(std::memory_order_acquire);
    if (there != 0 && HasToken(e, options.token)) return there;
    if (there == 0 && free == nullptr) free = &e;
    id = std::max(id, there);
  }
  ++id;
  if (free == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(ControlPage::kSnapshots,
                     " snapshots are open, the most there can be: release one (`sherd status` lists them)"));
  }
  const int64_t all = memory.layout().total_blocks();
  const int64_t blocks =
      options.pool_bytes == 0
          ? all
          : std::clamp<int64_t>(options.pool_bytes / BlockBytes(options.plane_mask), 1, all);
  // A dead coordinator may have left a pool that was never proposed.
  if (absl::Status s = SnapshotPool::Remove(memory.dir(), id); !s.ok()) return s;
  absl::StatusOr<SnapshotPool> pool = SnapshotPool::Create(memory, id, options.plane_mask, blocks);
  if (!pool.ok()) return pool.status();
  free->cut_plus_1 = 0;
  free->plane_mask = options.plane_mask;
  free->pool_blocks = blocks;
  free->used = 0;
  free->overflowed = 0;
  free->wait_when_full = options.wait_when_full;
  free->not_before = options.after_step.value();
  free->idle_ns = absl::ToInt64Nanoseconds(options.idle_timeout);
  free->expires_ns = runtime::MonotonicNanos() + free->idle_ns;
  std::memset(free->token, 0, sizeof(free->token));
  std::memcpy(free->token, options.token.data(), std::min(options.token.size(), sizeof(free->token)));
  free->id.store(id, std::memory_order_release);
  control.proposals.snapshot.store(id, std::memory_order_release);
  // Between two steps it would only be passed over.
  if (options.after_step.value() == 0) control.boundary.snapshot.store(id, std::memory_order_release);
  RingSlots(control);
  return id;
}

absl::StatusOr<SnapshotState> Snapshots::Open(JobMemory& memory, const SnapshotOptions& options,
                                              absl::Time deadline) {
  if (absl::Status s = runtime::CheckOneHost(memory.place(), "a snapshot (pull, save, stat)"); !s.ok())
    return s;
  ControlPage& control = memory.control();
  if (control.initialized.load(std::memory_order_acquire) == 0) {
    return absl::FailedPreconditionError(
        "the job has no values yet: rank 0 has not written the initial ones");
  }
  if (options.after_step.value() != 0) {
    const absl::StatusOr<StepId> done = memory.DoneByAll();
    if (!done.ok()) return done.status();
    if (done->step >= options.after_step) {
      return absl::FailedPreconditionError(absl::StrCat("step ", options.after_step.value(),
                                                        " is stored already: the job stands at step ",
                                                        done->step.value()));
    }
  }
  {
    MutexLock lock(mu_);
    while (beginning_) {
      if (absl::Now() >= deadline) return absl::DeadlineExceededError("another snapshot was being opened");
      begun_.WaitFor(mu_, deadline - absl::Now());
    }
    beginning_ = true;
  }
  const absl::StatusOr<uint64_t> id = Begin(memory, options);
  {
    MutexLock lock(mu_);
    beginning_ = false;
    begun_.SignalAll();
  }
  if (!id.ok()) return id.status();
  if (options.on_proposed) options.on_proposed();
  for (;;) {
    const uint32_t ticket = control.bell.Listen();
    SnapshotEntry* entry = FindSnapshot(control, *id);
    if (entry == nullptr)
      return absl::AbortedError(absl::StrCat("snapshot ", *id, " was released while it was being opened"));
    const uint64_t cut_plus_1 = entry->cut_plus_1.load(std::memory_order_acquire);
    const absl::StatusOr<StepId> done = memory.DoneByAll();
    if (cut_plus_1 != 0 && done.ok() && done->step.value() + 1 >= cut_plus_1) {
      entry->expires_ns = runtime::MonotonicNanos() + entry->idle_ns;
      return StateOf(*entry);
    }
    if (options.cancelled && options.cancelled()) {
      Release(memory, *id);
      return absl::CancelledError("whoever wanted the snapshot has gone");
    }
    if (absl::Now() >= deadline) {
      const std::string who = WhoIsWaitedFor(memory);
      Release(memory, *id);
      return absl::DeadlineExceededError(absl::StrCat("the snapshot was not cut in time: ", who));
    }
    entry->expires_ns = runtime::MonotonicNanos() + entry->idle_ns;
    control.bell.Wait(ticket, std::min(deadline - absl::Now(), absl::Milliseconds(250)),
                      runtime::SpinPolicy::None());
  }
}

void Snapshots::Release(JobMemory& memory, uint64_t id) {
  SnapshotEntry* entry = FindSnapshot(memory.control(), id);
  if (entry == nullptr) return;
  entry->id.store(0, std::memory_order_seq_cst);
  // Owners may wait for room in it.
  RingSlots(memory.control());
  const absl::Status removed = SnapshotPool::Remove(memory.dir(), id);
  if (!removed.ok()) spdlog::warn("snapshot {}: {}", id, removed.ToString());
}

std::vector<SnapshotState> Snapshots::List(JobMemory& memory) {
  std::vector<SnapshotState> out;
  for (const SnapshotEntry& e : memory.control().snapshots) {
    if (e.id.load(std::memory_order_acquire) != 0) out.push_back(StateOf(e));
  }
  std::sort(out.begin(), out.end(),
            [](const SnapshotState& a, const SnapshotState& b) { return a.id < b.id; });
  return out;
}

void Snapshots::Sweep(JobMemory& memory) {
  const int64_t now = runtime::MonotonicNanos();
  for (SnapshotEntry& e : memory.control().snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    if (id == 0 || e.expires_ns.load() > now) continue;
    spdlog::info("snapshot {}: released, nobody read it for {}", id,
                 absl::FormatDuration(absl::Nanoseconds(e.idle_ns.load())));
    Release(memory, id);
  }
}

}  // namespace sherd::server

#include "server/snapshot_table.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "runtime/flock.h"
#include "runtime/unique_fd.h"
#include "server/snapshot_pool.h"
#include "server/snapshot_reader.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::ControlPage;
using runtime::JobMemory;
using runtime::SnapshotEntry;

constexpr absl::Duration kLookAgain = absl::Milliseconds(250);

bool HasToken(const SnapshotEntry& e, const std::string& token) {
  char padded[sizeof(e.token)] = {};
  std::memcpy(padded, token.data(), std::min(token.size(), sizeof(padded)));
  return std::memcmp(padded, e.token, sizeof(padded)) == 0;
}

void PutOff(SnapshotEntry& e) {
  e.expires_ns.store(runtime::MonotonicNanos() + e.idle_ns.load(std::memory_order_relaxed));
}

void FillEntry(const PoolOrder& order, SnapshotEntry* e) {
  e->cut_plus_1 = 0;
  e->plane_mask = order.plane_mask;
  e->pool_blocks = order.pool_blocks;
  e->used = 0;
  e->overflowed = 0;
  e->wait_when_full = order.wait_when_full;
  e->not_before = order.after_step.value();
  e->idle_ns = absl::ToInt64Nanoseconds(order.idle_timeout);
  PutOff(*e);
  std::memset(e->token, 0, sizeof(e->token));
  std::memcpy(e->token, order.token.data(), std::min(order.token.size(), sizeof(e->token)));
  e->id.store(order.id, std::memory_order_release);
}

}  // namespace

uint64_t FindByToken(const ControlPage& control, const std::string& token) {
  for (const SnapshotEntry& e : control.snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    if (id != 0 && HasToken(e, token)) return id;
  }
  return 0;
}

absl::Status OpenPool(JobMemory& memory, const PoolOrder& order) {
  // On a host that does not coordinate any server may be asked, and again while another is at it.
  const std::string path = absl::StrCat(memory.dir().path(), "/snapshots");
  runtime::UniqueFd lock(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  if (!lock.ok() || runtime::Flock(lock.get(), LOCK_EX) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot lock ", path));
  ControlPage& control = memory.control();
  if (const SnapshotEntry* there = FindSnapshot(control, order.id);
      there != nullptr && HasToken(*there, order.token)) {
    return absl::OkStatus();
  }
  if (control.proposals.snapshot.load(std::memory_order_acquire) >= order.id) {
    return absl::FailedPreconditionError(
        absl::StrCat("a snapshot ", order.id, " was proposed already: repeat the call"));
  }
  ReleasePool(memory, order.id);
  const auto free = std::find_if(std::begin(control.snapshots), std::end(control.snapshots),
                                 [](const SnapshotEntry& e) { return e.id.load() == 0; });
  if (free == std::end(control.snapshots)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(ControlPage::kSnapshots,
                     " snapshots are open, the most there can be: release one (`sherd status` lists them)"));
  }
  // A dead coordinator may have left a pool that was never proposed.
  if (absl::Status s = SnapshotPool::Remove(memory.dir(), order.id); !s.ok()) return s;
  absl::StatusOr<SnapshotPool> pool =
      SnapshotPool::Create(memory, order.id, order.plane_mask, order.pool_blocks);
  if (!pool.ok()) return pool.status();
  FillEntry(order, free);
  return absl::OkStatus();
}

void ReleasePool(JobMemory& memory, uint64_t id) {
  SnapshotEntry* entry = FindSnapshot(memory.control(), id);
  // Who sweeps at the same moment may already have put another in its place.
  if (entry == nullptr || !entry->id.compare_exchange_strong(id, 0, std::memory_order_seq_cst)) return;
  // Owners may wait for room in it.
  for (runtime::MemberEntry& m : memory.control().servers) m.bell.Ring();
  const absl::Status removed = SnapshotPool::Remove(memory.dir(), id);
  if (!removed.ok()) spdlog::warn("snapshot {}: {}", id, removed.ToString());
}

void SweepPools(JobMemory& memory) {
  const int64_t now = runtime::MonotonicNanos();
  for (SnapshotEntry& e : memory.control().snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    if (id == 0 || e.expires_ns.load() > now) continue;
    spdlog::info("snapshot {}: released, nobody read it for {}", id,
                 absl::FormatDuration(absl::Nanoseconds(e.idle_ns.load())));
    ReleasePool(memory, id);
  }
}

absl::StatusOr<Step> AwaitCut(JobMemory& memory, uint64_t id, absl::Time deadline,
                              const std::function<absl::Status()>& go_on) {
  ControlPage& control = memory.control();
  for (;;) {
    const uint32_t ticket = control.bell.Listen();
    SnapshotEntry* entry = FindSnapshot(control, id);
    if (entry == nullptr) return absl::NotFoundError(absl::StrCat("there is no snapshot ", id, " any more"));
    PutOff(*entry);
    const uint64_t cut_plus_1 = entry->cut_plus_1.load(std::memory_order_acquire);
    const absl::StatusOr<StepId> done = memory.DoneByAll();
    if (cut_plus_1 != 0 && done.ok() && done->step.value() + 1 >= cut_plus_1) return Step(cut_plus_1 - 1);
    if (absl::Status s = go_on(); !s.ok()) return s;
    const absl::Time now = runtime::SteadyNow();
    if (now >= deadline) return absl::DeadlineExceededError("the snapshot was not cut in time");
    control.bell.Wait(ticket, std::min(deadline - now, kLookAgain), runtime::SpinPolicy::None());
  }
}

}  // namespace sherd::server

// The open snapshots of one host: entries of its control page, each with a pool. In a job of several hosts
// each has its own, with the same ids, which the coordinator opens and releases on all of them
// (server/snapshots.h); owners cut what is here.
//
//   absl::Status s = OpenPool(memory, order);
//   absl::StatusOr<Step> cut = AwaitCut(memory, order.id, deadline, go_on);
//   ReleasePool(memory, order.id);
//
// Thread-safe, also among the processes of a host.
#ifndef SHERD_SERVER_SNAPSHOT_TABLE_H_
#define SHERD_SERVER_SNAPSHOT_TABLE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::server {

struct PoolOrder {
  uint64_t id = 0;          // above all that were proposed
  uint64_t plane_mask = 0;  // of SnapshotPool
  int64_t pool_blocks = 0;
  bool wait_when_full = false;
  Step after_step;  // of SnapshotOptions
  absl::Duration idle_timeout;
  std::string token;  // 1..64 bytes
};

// The id of the open snapshot that was ordered with a token; 0: none was.
uint64_t FindByToken(const runtime::ControlPage& control, const std::string& token);

// Makes pool and entry; an entry of that id and token is as good. What a dead coordinator left of the id,
// which it never proposed, is replaced. Blocks while memory is reserved.
//   FAILED_PRECONDITION  a snapshot of the id was proposed already
//   RESOURCE_EXHAUSTED   too many are open, or no room for the pool
absl::Status OpenPool(runtime::JobMemory& memory, const PoolOrder& order);

// Gives the memory of a snapshot on this host back. Unknown ids are no error.
void ReleasePool(runtime::JobMemory& memory, uint64_t id);

// Releases what nobody has read for its idle_timeout.
void SweepPools(runtime::JobMemory& memory);

// Waits until the snapshot is cut here and what it was cut after is stored everywhere, as this host knows;
// keeps it from expiring meanwhile, and once more. The step.
//   NOT_FOUND            it was released, or never there
//   DEADLINE_EXCEEDED    not in time
//   others               go_on's, which is asked a few times a second
absl::StatusOr<Step> AwaitCut(runtime::JobMemory& memory, uint64_t id, absl::Time deadline,
                              const std::function<absl::Status()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOT_TABLE_H_

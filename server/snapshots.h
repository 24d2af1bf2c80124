// Opens and releases snapshots: the coordinator's side of DESIGN.md, proposals and boundaries. Owners cut
// them, server/snapshot_reader.h reads them. In a job of several hosts a snapshot has a pool on each, which
// stands there before it is proposed (server/snapshot_table.h).
//
//   Snapshots snapshots(nullptr);
//   absl::StatusOr<SnapshotState> s = snapshots.Open(memory, options, deadline);
//   snapshots.Release(memory, s->id);
//
// What is open stands in the control page, so a successor of this process goes on with it. Thread-safe; Open
// blocks until its step is stored everywhere.
#ifndef SHERD_SERVER_SNAPSHOTS_H_
#define SHERD_SERVER_SNAPSHOTS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/types.h"
#include "runtime/job_memory.h"
#include "runtime/mutex.h"
#include "server/other_hosts.h"
#include "server/snapshot_pool.h"
#include "server/snapshot_table.h"

namespace sherd::server {

struct SnapshotOptions {
  uint64_t plane_mask = 1;      // of SnapshotPool; not 0
  int64_t pool_bytes = 0;       // 0: room for every block
  bool wait_when_full = false;  // false: the snapshot is lost when its pool is full
  absl::Duration idle_timeout = absl::Seconds(60);
  // Not 0: cut after this step, which is in hand and must not have been decided. Nobody else's snapshot or
  // pull, which may be cut earlier, changes that.
  Step after_step;
  // Called once all is ready and the cut cannot be missed any more: with after_step, before it has happened.
  std::function<void()> on_proposed;
  // Asked now and then while Open waits: true gives up.
  std::function<bool()> cancelled;
  std::string token;  // 1..64 bytes; an open snapshot with this token is the answer
};

struct SnapshotState {
  uint64_t id = 0;
  Step step;
  uint64_t plane_mask = 0;
  int64_t pool_bytes = 0;
  int64_t pool_used_bytes = 0;
  bool wait_when_full = false;
  bool overflowed = false;
  absl::Duration idle_timeout;
};

class Snapshots {
 public:
  // `others`: the other hosts of the job, borrowed; null if there are none.
  explicit Snapshots(const OtherHosts* others) : others_(others) {}

  //   FAILED_PRECONDITION  the initial values are not whole yet; or after_step is stored already
  //   RESOURCE_EXHAUSTED   too many are open, or no room for the pool
  //   CANCELLED            see above
  //   DEADLINE_EXCEEDED    says which owner had not come to a boundary; nothing is left behind
  //   UNAVAILABLE          another host cannot be reached: names it; nothing is left behind but what expires
  absl::StatusOr<SnapshotState> Open(runtime::JobMemory& memory, const SnapshotOptions& options,
                                     absl::Time deadline);

  // Unknown ids are no error. On a host that does not answer it expires.
  void Release(runtime::JobMemory& memory, uint64_t id);

  // As they are on this host.
  static std::vector<SnapshotState> List(runtime::JobMemory& memory);

 private:
  absl::StatusOr<uint64_t> Begin(runtime::JobMemory& memory, const SnapshotOptions& options,
                                 absl::Time deadline);
  absl::Status MakePools(runtime::JobMemory& memory, const PoolOrder& order, absl::Time deadline);
  absl::StatusOr<Step> AwaitCutEverywhere(runtime::JobMemory& memory, uint64_t id,
                                          const SnapshotOptions& options, absl::Time deadline);
  // The step after which each of the other hosts has cut it, if it is one. `patient`: how long their servers
  // may be away.
  absl::StatusOr<Step> AwaitCutElsewhere(uint64_t id, absl::Time deadline, absl::Time patient,
                                         const std::function<bool()>& go_on) const;
  void ReleaseElsewhere(uint64_t id) const;

  const OtherHosts* const others_;
  runtime::Mutex mu_;
  bool beginning_ ABSL_GUARDED_BY(mu_) = false;  // one at a time: ids are proposed in order
  runtime::CondVar begun_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOTS_H_

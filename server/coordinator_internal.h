// What the files of Coordinator share.
#ifndef SHERD_SERVER_COORDINATOR_INTERNAL_H_
#define SHERD_SERVER_COORDINATOR_INTERNAL_H_

#include <algorithm>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/epoch_doc.h"
#include "runtime/job_memory.h"
#include "runtime/process_identity.h"

namespace sherd::server::internal {

// How often the monitor looks when nothing rings.
inline constexpr absl::Duration kLookAgain = absl::Milliseconds(250);

inline runtime::ProcessIdentity OnThisHost(const ProcessIdentity& p) {
  return {static_cast<int32_t>(p.pid), p.start};
}

inline absl::Status Stopping() {
  return absl::UnavailableError(
      "this server's coordinator stops; another server takes over: repeat the call with the same token");
}

inline void RingSlots(runtime::ControlPage& control) {
  for (runtime::MemberEntry& entry : control.servers) entry.bell.Ring();
  control.bell.Ring();
  control.link_bell.Ring();  // for other hosts
}

// What every owner of the assignment in force has carried out.
inline Proposals DecidedByAll(runtime::JobMemory& memory) {
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  Proposals least;
  for (int m = 0; a.has_value() && m < a->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
    const Proposals d = owner.ok() ? (*owner)->Decided() : Proposals();
    least = m == 0 ? d
                   : Proposals{std::min(least.ranges, d.ranges), std::min(least.snapshot, d.snapshot),
                               std::min(least.import, d.import)};
  }
  return least;
}

inline bool AnyTrainerAttached(runtime::JobMemory& memory) {
  for (int r = 0; r < memory.places(); ++r) {
    // A dead trainer's gradients of the step in hand may be in use: its place is not given up.
    const uint32_t state = memory.trainer(Rank(r)).state.load(std::memory_order_acquire);
    if (state == runtime::MemberEntry::kAttached || state == runtime::MemberEntry::kDead) return true;
  }
  return false;
}

}  // namespace sherd::server::internal

#endif  // SHERD_SERVER_COORDINATOR_INTERNAL_H_

// What the files of Coordinator share.
#ifndef SHERD_SERVER_COORDINATOR_INTERNAL_H_
#define SHERD_SERVER_COORDINATOR_INTERNAL_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/epoch_doc.h"
#include "runtime/job_memory.h"
#include "runtime/process_identity.h"
#include "server/decided.h"
#include "server/trainers.h"

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

}  // namespace sherd::server::internal

#endif  // SHERD_SERVER_COORDINATOR_INTERNAL_H_

// The memory of a host that follows a lost one, before its agent is at work: what core/host_takeover.h
// decides, carried out. Afterwards it is as if the lost host's processes had died and come again: its owners
// adopt what stands in their pages, its trainers compute the step in hand again.
//
//   absl::Status s = TakeOver(others, memory, go_on);
//
// Blocks for calls to all other hosts and for the copy of this host's share of the state.
#ifndef SHERD_SERVER_HOST_TAKEOVER_H_
#define SHERD_SERVER_HOST_TAKEOVER_H_

#include <functional>

#include "absl/status/status.h"
#include "runtime/job_memory.h"
#include "server/other_hosts.h"

namespace sherd::server {

// OK, and nothing done, where nobody has met this host before. `memory` is new. May be repeated until it is
// OK.
//   FAILED_PRECONDITION  nobody else has what the lost host owned; yet another one takes the same place; an
//                        optimizer of whose step a part would be lost
//   UNAVAILABLE          names a host that cannot be reached
//   CANCELLED            `go_on` is false
absl::Status TakeOver(const OtherHosts& others, runtime::JobMemory& memory,
                      const std::function<bool()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_TAKEOVER_H_

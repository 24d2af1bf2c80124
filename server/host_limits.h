// What a job of several hosts cannot do: asked when its first trainer attaches.
#ifndef SHERD_SERVER_HOST_LIMITS_H_
#define SHERD_SERVER_HOST_LIMITS_H_

#include "absl/status/status.h"
#include "core/job_spec.h"
#include "runtime/host_place.h"

namespace sherd::server {

// FAILED_PRECONDITION: names what it cannot and the remedy.
absl::Status CheckForSeveralHosts(const runtime::HostPlace& place, const JobSpec& spec);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_LIMITS_H_

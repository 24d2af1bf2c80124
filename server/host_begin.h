// The memory of another host than the first, before its agent is at work: rank 0's values come from the first
// host, but what a job that begins from a checkpoint has here besides them is read here.
//
//   absl::StatusOr<JobMemory*> memory = home.MakeMemory(home.store(), spec);
//   absl::Status s = BeginHost(home, **memory, servers, go_on);
//
// Thread-safe; blocks on the file system, for as long as a checkpoint takes to read.
#ifndef SHERD_SERVER_HOST_BEGIN_H_
#define SHERD_SERVER_HOST_BEGIN_H_

#include <functional>

#include "absl/status/status.h"
#include "runtime/job_memory.h"
#include "server/job_home.h"
#include "server/other_hosts.h"

namespace sherd::server {

// Once in the life of the memory, by one server of the host at a time; OK at once when it is done. `servers`:
// of the whole job. `others`: to follow a host that was lost (host_takeover.h); null: nobody was before. What
// fails may be tried again. `go_on` false ends it.
//   UNAVAILABLE          no servers yet, or the first host does not answer: repeat the call
//   FAILED_PRECONDITION  the host does not see the checkpoint: names the host
//   CANCELLED            see above
//   others               RestoreHost's, TakeOver's
absl::Status BeginHost(JobHome& home, runtime::JobMemory& memory, int servers, const OtherHosts* others,
                       const std::function<bool()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_BEGIN_H_

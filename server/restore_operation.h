// CheckpointService.Restore and ReadPart, and the beginning of a job from a checkpoint (DESIGN.md, save and
// restore).
//
//   absl::StatusOr<v1::RestoreResponse> r = RestoreIntoJob(context, coordinator, request, deadline);
//
// Thread-safe; blocks.
#ifndef SHERD_SERVER_RESTORE_OPERATION_H_
#define SHERD_SERVER_RESTORE_OPERATION_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "proto/sherd/v1/job.pb.h"
#include "server/coordinator.h"
#include "server/service_context.h"

namespace sherd::server {

// On the coordinator: into a running job, all or none, at a step boundary. Errors as in checkpoint.proto.
absl::StatusOr<v1::RestoreResponse> RestoreIntoJob(ServiceContext* context, Coordinator* coordinator,
                                                   const v1::RestoreRequest& request, absl::Time deadline);

// On the coordinator: the values of a job that begins as `record` says. When it returns OK all that trainers
// and owners look at is in memory, and only CommitInitial is left to do. May be repeated until then.
absl::StatusOr<v1::RestoreReport> RestoreInitial(ServiceContext* context, Coordinator* coordinator,
                                                 const v1::RestoreRecord& record, absl::Time deadline);

// On a server of another host than the first: makes this host's memory what the job begins with, but for what
// the first host sends. `servers`: of the job. May be repeated until the host's agent is at work. `go_on`
// false ends it (CANCELLED).
absl::Status RestoreHost(runtime::JobMemory& memory, const v1::RestoreRecord& record, int servers,
                         const std::function<bool()>& go_on);

// On any server. `go_on` false ends it.
absl::StatusOr<v1::ReadPartResponse> ReadPartHere(ServiceContext* context, const v1::ReadPartRequest& request,
                                                  const std::function<bool()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_RESTORE_OPERATION_H_

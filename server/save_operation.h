// CheckpointService.Save and WritePart: the state after one step, written by all servers while training goes
// on (DESIGN.md, save and restore).
//
//   auto result = SaveCheckpoint(context, coordinator, request, deadline, tell);
//
// Thread-safe; blocks until the checkpoint is durable.
#ifndef SHERD_SERVER_SAVE_OPERATION_H_
#define SHERD_SERVER_SAVE_OPERATION_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "server/coordinator.h"
#include "server/service_context.h"

namespace sherd::server {

// On the coordinator. `tell` is given the cut and how far it is, from the calling thread; false gives up and
// leaves nothing behind. Errors as in checkpoint.proto.
absl::StatusOr<v1::SaveProgress::Result> SaveCheckpoint(
    ServiceContext* context, Coordinator* coordinator, const v1::SaveRequest& request, absl::Time deadline,
    const std::function<bool(const v1::SaveProgress&)>& tell);

// On any server. `tell`: as above, from the calling thread.
absl::StatusOr<v1::PartFile> WritePartHere(ServiceContext* context, const v1::WritePartRequest& request,
                                           const std::function<bool(int64_t written_bytes)>& tell);

}  // namespace sherd::server

#endif  // SHERD_SERVER_SAVE_OPERATION_H_

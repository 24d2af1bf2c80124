// sherd.v1.CheckpointService: snapshots through the coordinator, pulls from the job's memory by any server,
// pushes.
#ifndef SHERD_SERVER_CHECKPOINT_SERVICE_H_
#define SHERD_SERVER_CHECKPOINT_SERVICE_H_

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/service_context.h"

namespace sherd::server {

// `context` is borrowed.
std::unique_ptr<grpc::Service> MakeCheckpointService(ServiceContext* context);

}  // namespace sherd::server

#endif  // SHERD_SERVER_CHECKPOINT_SERVICE_H_

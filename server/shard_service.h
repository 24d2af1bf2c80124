// sherd.v1.ShardService: trainers come and go through the coordinator; reads are served from the job's memory
// by any server.
#ifndef SHERD_SERVER_SHARD_SERVICE_H_
#define SHERD_SERVER_SHARD_SERVICE_H_

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/service_context.h"

namespace sherd::server {

// `context` is borrowed.
std::unique_ptr<grpc::Service> MakeShardService(ServiceContext* context);

}  // namespace sherd::server

#endif  // SHERD_SERVER_SHARD_SERVICE_H_

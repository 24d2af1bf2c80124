// sherd.v1.ClusterService over the coordinator, here or elsewhere.
#ifndef SHERD_SERVER_CLUSTER_SERVICE_H_
#define SHERD_SERVER_CLUSTER_SERVICE_H_

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/service_context.h"

namespace sherd::server {

// `context` is borrowed.
std::unique_ptr<grpc::Service> MakeClusterService(ServiceContext* context);

}  // namespace sherd::server

#endif  // SHERD_SERVER_CLUSTER_SERVICE_H_

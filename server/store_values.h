// How Push and WriteTensor end: the coordinator, wherever it is, stores what a stage has.
#ifndef SHERD_SERVER_STORE_VALUES_H_
#define SHERD_SERVER_STORE_VALUES_H_

#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "server/coordinator.h"
#include "server/import_stage.h"
#include "server/service_context.h"

namespace sherd::server {

// Waits until it is stored everywhere; errors are ProposeImport's. `coordinator`: if it is here; else null.
// REQUIRES: stage.Finish() was OK. Thread-safe.
absl::StatusOr<v1::ProposeImportResponse> StoreValues(ServiceContext* context,
                                                      const grpc::ServerContext& call,
                                                      Coordinator* coordinator, const std::string& token,
                                                      const ImportStage& stage);

}  // namespace sherd::server

#endif  // SHERD_SERVER_STORE_VALUES_H_

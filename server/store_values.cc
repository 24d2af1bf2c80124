#include "server/store_values.h"

#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/status.h"
#include "server/host_imports.h"

namespace sherd::server {

absl::StatusOr<v1::ProposeImportResponse> StoreValues(ServiceContext* context,
                                                      const grpc::ServerContext& call,
                                                      Coordinator* coordinator, const std::string& token,
                                                      const ImportStage& stage) {
  v1::ProposeImportRequest request;
  request.set_job(context->job());
  request.set_token(token);
  stage.AddParts(&request);
  if (coordinator != nullptr) {
    const absl::StatusOr<runtime::JobMemory*> memory = context->Memory();
    if (!memory.ok()) return memory.status();
    return ProposeImportHere(context->Others(), **memory, *coordinator, request, DeadlineOf(call));
  }
  v1::ProposeImportResponse response;
  const absl::Status stored = FromGrpc(context->ForwardWhileLinked<v1::CheckpointService>(
      call, &v1::CheckpointService::Stub::ProposeImport, request, &response));
  if (!stored.ok()) return stored;
  return response;
}

}  // namespace sherd::server

// What a server answers CheckpointService.Pull: the bytes of a snapshot's tensors, framed by hand.
#ifndef SHERD_SERVER_PULL_ANSWER_H_
#define SHERD_SERVER_PULL_ANSWER_H_

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/sync_stream.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "server/service_context.h"

namespace sherd::server {

// Messages as server/chunk_frame.h makes them.
using PullStream = grpc::ServerReaderWriter<grpc::ByteBuffer, v1::PullRequest>;

// Errors as in checkpoint.proto. Blocks until all is sent. Thread-safe.
absl::Status AnswerPull(ServiceContext* context, grpc::ServerContext* call, const v1::PullRequest& request,
                        PullStream* out);

}  // namespace sherd::server

#endif  // SHERD_SERVER_PULL_ANSWER_H_

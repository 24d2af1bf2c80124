// What a host does for another one that follows a lost one (core/host_takeover.h): cuts the lost one off,
// says what it has of it, takes what others had, and hands out its own share of the state.
//
// Functions are thread-safe and block: for the agent of this host, or for whoever reads.
#ifndef SHERD_SERVER_HOST_SURVIVOR_H_
#define SHERD_SERVER_HOST_SURVIVOR_H_

#include <functional>

#include "absl/status/status.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"

namespace sherd::server {

// False from either of these ends the call.
using SendRecord = std::function<bool(const v1::HostRecord&)>;
using SendPiece = std::function<bool(const v1::StatePiece&)>;

// Errors of all are those in checkpoint.proto, and INVALID_ARGUMENT: no other host of the job, or a record
// that is not of the lost one.
absl::Status FenceHostHere(runtime::JobMemory& memory, const v1::FenceHostRequest& request,
                           const SendRecord& send, const std::function<bool()>& go_on);
absl::Status TellRecordHere(runtime::JobMemory& memory, const v1::TellRecordRequest& request);
absl::Status CopyStateHere(runtime::JobMemory& memory, const v1::CopyStateRequest& request,
                           const SendPiece& send);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_SURVIVOR_H_

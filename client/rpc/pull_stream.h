// One pulled byte stream, whole and checked, however often its connection breaks.
//
//   PullOutcome outcome = PullBytes(client, request, total, sink, deadline);
//
// Every chunk must follow the one before and match its crc32c before `sink` gets it, so what was handed over
// is a verified prefix: after a break the stream is asked for again, from any server, from its end on.
#ifndef SHERD_CLIENT_RPC_PULL_STREAM_H_
#define SHERD_CLIENT_RPC_PULL_STREAM_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/rpc/job_client.h"
#include "proto/sherd/v1/checkpoint.pb.h"

namespace sherd::rpc {

struct PullOutcome {
  absl::Status status;
  // The snapshot is gone or lost, or what came is not of it: another one may do.
  bool snapshot_lost = false;
  int resumed = 0;  // times the stream went on after a break or damage
};

// Pulls `total` bytes as `request` says (its offset is set here). `sink` gets them in order, from this
// thread; its error ends the pull and is the outcome. Errors of the call; DATA_LOSS for damage that came
// three times in one place, and for streams of another length. Blocks.
PullOutcome PullBytes(JobClient& client, v1::PullRequest request, uint64_t total,
                      absl::FunctionRef<absl::Status(uint64_t offset, absl::string_view bytes)> sink,
                      absl::Time deadline);

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_PULL_STREAM_H_

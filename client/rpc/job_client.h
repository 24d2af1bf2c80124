// Calls to the servers of one job, as messages and absl::Status: no gRPC in sight.
//
//   JobClient client(*FindEndpoints(...), {});
//   v1::ResizeRequest request;  request.set_token(NewToken());  ...
//   StatusOr<v1::Cluster> cluster = client.GetCluster({}, runtime::SteadyNow() + absl::Seconds(5));
//
// Any server answers anything, so endpoints are alternatives: calls go to the one that answered last and,
// when the connection fails, to the next. Every call has a deadline, and every one may be repeated (mutations
// carry a token, which the caller sets once and which stays the same in every repetition).
//
// Unary calls repeat themselves on UNAVAILABLE, with back-off, until the deadline or Options::patience
// without any answer. Streams are one attempt each, because only the caller knows where to go on: repeat them
// with RetryUnavailable().
//
// Errors: what the server said, with its code; UNAVAILABLE "no server answers at ..." when none was reached;
// DEADLINE_EXCEEDED; CANCELLED after Cancel(). Calls block. Thread-safe.
#ifndef SHERD_CLIENT_RPC_JOB_CLIENT_H_
#define SHERD_CLIENT_RPC_JOB_CLIENT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/rpc/backoff.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/access_files.h"

namespace sherd::rpc {

// 16 random bytes that make a mutation safe to repeat.
std::string NewToken();

class JobClient {
 public:
  struct Options {
    // Waits between tries, and how long to go on while servers that answered before do not (they restart).
    Backoff::Policy retry;
    // The same as long as none has ever answered: there may be nothing.
    absl::Duration first_patience = absl::Seconds(2);
    // Shown to servers over TCP; unix sockets need none.
    runtime::Access access;
  };

  // Connects lazily. REQUIRES: `endpoints` as from ParseEndpoints, at least one.
  JobClient(std::vector<std::string> endpoints, const Options& options);
  ~JobClient();
  JobClient(const JobClient&) = delete;
  JobClient& operator=(const JobClient&) = delete;

  // The one that answered last (or is tried next).
  std::string endpoint() const;

  // Ends every call, running or to come, with CANCELLED.
  void Cancel();

  // Repeats `attempt` while it returns UNAVAILABLE, as the unary calls do. Progress made by an attempt that
  // failed in the end is told by NoteProgress(), and makes patience start anew.
  absl::Status RetryUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status()> attempt);
  void NoteProgress();

  absl::StatusOr<v1::Cluster> GetCluster(const v1::GetClusterRequest& request, absl::Time deadline);
  absl::StatusOr<v1::AttachResponse> Attach(const v1::AttachRequest& request, absl::Time deadline);
  absl::StatusOr<v1::CommitInitialResponse> CommitInitial(const v1::CommitInitialRequest& request,
                                                          absl::Time deadline);
  absl::StatusOr<v1::DetachResponse> Detach(const v1::DetachRequest& request, absl::Time deadline);
  absl::StatusOr<v1::ListTensorsResponse> ListTensors(const v1::ListTensorsRequest& request,
                                                      absl::Time deadline);
  absl::StatusOr<v1::Capabilities> GetCapabilities(const v1::GetCapabilitiesRequest& request,
                                                   absl::Time deadline);
  absl::StatusOr<v1::SnapshotInfo> Snapshot(const v1::SnapshotRequest& request, absl::Time deadline);
  absl::StatusOr<v1::ReleaseResponse> Release(const v1::ReleaseRequest& request, absl::Time deadline);
  absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(const v1::ListSnapshotsRequest& request,
                                                          absl::Time deadline);

  absl::StatusOr<v1::RestoreResponse> Restore(const v1::RestoreRequest& request, absl::Time deadline);
  absl::StatusOr<v1::CompareCopiesResponse> CompareCopies(const v1::CompareCopiesRequest& request,
                                                          absl::Time deadline);

  // Streams from the server: `receive` gets each message, in order; an error from it ends the call and is its
  // result. OK at the stream's end.
  template <typename Message>
  using Receive = absl::FunctionRef<absl::Status(Message& message)>;

  absl::Status WatchCluster(const v1::WatchClusterRequest& request, absl::Time deadline,
                            Receive<v1::Cluster> receive);
  absl::Status Resize(const v1::ResizeRequest& request, absl::Time deadline,
                      Receive<v1::ResizeProgress> receive);
  absl::Status Drain(const v1::DrainRequest& request, absl::Time deadline,
                     Receive<v1::ResizeProgress> receive);
  absl::Status ReadTensor(const v1::ReadTensorRequest& request, absl::Time deadline,
                          Receive<v1::ReadTensorResponse> receive);
  absl::Status TensorStats(const v1::TensorStatsRequest& request, absl::Time deadline,
                           Receive<v1::TensorStat> receive);
  absl::Status Pull(const v1::PullRequest& request, absl::Time deadline, Receive<v1::Chunk> receive);
  absl::Status Save(const v1::SaveRequest& request, absl::Time deadline, Receive<v1::SaveProgress> receive);

  // Streams to the server: `next` fills one message after the other and returns false, leaving the message
  // alone, after the last; an error from it ends the call without a commit and is its result.
  template <typename Message>
  using Send = absl::FunctionRef<absl::StatusOr<bool>(Message* message)>;

  absl::StatusOr<v1::WriteTensorResponse> WriteTensor(Send<v1::WriteTensorRequest> next, absl::Time deadline);
  absl::StatusOr<v1::PushResponse> Push(Send<v1::PushRequest> next, absl::Time deadline);

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_JOB_CLIENT_H_

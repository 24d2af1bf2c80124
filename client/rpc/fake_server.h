// A server of sherd.v1 in this process, for tests of clients: real gRPC on a unix socket, and hooks in place
// of a job.
//
//   FakeServer server(root.path() + "/s0.sock");
//   server.get_cluster = [](const v1::GetClusterRequest&, v1::Cluster* out) { ...; return absl::OkStatus();
//   }; JobClient client({server.endpoint()}, {});
//
// A call whose hook is not set gets UNIMPLEMENTED. Set hooks before the first call; they run on gRPC's
// threads.
#ifndef SHERD_CLIENT_RPC_FAKE_SERVER_H_
#define SHERD_CLIENT_RPC_FAKE_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "proto/sherd/v1/shard.pb.h"

namespace sherd::rpc {

class FakeServer {
 public:
  template <typename Request, typename Response>
  using Unary = std::function<absl::Status(const Request&, Response*)>;
  // `write` returns false when the client has gone.
  template <typename Request, typename Response>
  using Stream =
      std::function<absl::Status(const Request&, const std::function<bool(const Response&)>& write)>;
  // `read` returns false at the end of the stream.
  template <typename Request, typename Response>
  using Upload = std::function<absl::Status(const std::function<bool(Request*)>& read, Response*)>;

  explicit FakeServer(const std::string& socket_path);
  ~FakeServer();
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  std::string endpoint() const;

  // Ends every connection, as a kill would, and serves again on the same path when Start() is called.
  void Stop();
  void Start();

  Unary<v1::GetClusterRequest, v1::Cluster> get_cluster;
  Stream<v1::WatchClusterRequest, v1::Cluster> watch_cluster;
  Stream<v1::ResizeRequest, v1::ResizeProgress> resize;
  Stream<v1::DrainRequest, v1::ResizeProgress> drain;
  Unary<v1::ListTensorsRequest, v1::ListTensorsResponse> list_tensors;
  Stream<v1::ReadTensorRequest, v1::ReadTensorResponse> read_tensor;
  Stream<v1::TensorStatsRequest, v1::TensorStat> tensor_stats;
  Unary<v1::SnapshotRequest, v1::SnapshotInfo> snapshot;
  Unary<v1::ReleaseRequest, v1::ReleaseResponse> release;
  Stream<v1::PullRequest, v1::Chunk> pull;
  Upload<v1::PushRequest, v1::PushResponse> push;

 private:
  class Impl;
  const std::string path_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_FAKE_SERVER_H_

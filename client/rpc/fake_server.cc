#include "client/rpc/fake_server.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/sherd/v1/shard.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"

namespace sherd::rpc {
namespace {

template <typename Hook, typename Request, typename Response>
grpc::Status Answer(const Hook& hook, const Request& request, Response* response) {
  return hook ? ToGrpc(hook(request, response)) : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no hook");
}

template <typename Response, typename Hook, typename Request>
grpc::Status Serve(const Hook& hook, const Request& request, grpc::ServerWriter<Response>* writer) {
  if (!hook) return {grpc::StatusCode::UNIMPLEMENTED, "no hook"};
  return ToGrpc(hook(request, [&](const Response& response) { return writer->Write(response); }));
}

}  // namespace

class FakeServer::Impl : public v1::ClusterService::Service,
                         public v1::ShardService::Service,
                         public v1::CheckpointService::Service {
 public:
  explicit Impl(const FakeServer& hooks) : hooks_(hooks) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(hooks.endpoint(), grpc::InsecureServerCredentials());
    builder.RegisterService(static_cast<v1::ClusterService::Service*>(this));
    builder.RegisterService(static_cast<v1::ShardService::Service*>(this));
    builder.RegisterService(static_cast<v1::CheckpointService::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~Impl() override { server_->Shutdown(runtime::ToTimeOfDay(runtime::SteadyNow())); }

 private:
  using Context = grpc::ServerContext;
  grpc::Status GetCluster(Context*, const v1::GetClusterRequest* request, v1::Cluster* response) override {
    return Answer(hooks_.get_cluster, *request, response);
  }
  grpc::Status WatchCluster(Context*, const v1::WatchClusterRequest* request,
                            grpc::ServerWriter<v1::Cluster>* writer) override {
    return Serve(hooks_.watch_cluster, *request, writer);
  }
  grpc::Status Resize(Context*, const v1::ResizeRequest* request,
                      grpc::ServerWriter<v1::ResizeProgress>* writer) override {
    return Serve(hooks_.resize, *request, writer);
  }
  grpc::Status Drain(Context*, const v1::DrainRequest* request,
                     grpc::ServerWriter<v1::ResizeProgress>* writer) override {
    return Serve(hooks_.drain, *request, writer);
  }
  grpc::Status ListTensors(Context*, const v1::ListTensorsRequest* request,
                           v1::ListTensorsResponse* response) override {
    return Answer(hooks_.list_tensors, *request, response);
  }
  grpc::Status ReadTensor(Context*, const v1::ReadTensorRequest* request,
                          grpc::ServerWriter<v1::ReadTensorResponse>* writer) override {
    return Serve(hooks_.read_tensor, *request, writer);
  }
  grpc::Status TensorStats(Context*, const v1::TensorStatsRequest* request,
                           grpc::ServerWriter<v1::TensorStat>* writer) override {
    return Serve(hooks_.tensor_stats, *request, writer);
  }
  grpc::Status Snapshot(Context*, const v1::SnapshotRequest* request, v1::SnapshotInfo* response) override {
    return Answer(hooks_.snapshot, *request, response);
  }
  grpc::Status Release(Context*, const v1::ReleaseRequest* request, v1::ReleaseResponse* response) override {
    return Answer(hooks_.release, *request, response);
  }
  grpc::Status Pull(Context*, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::Chunk>* writer) override {
    return Serve(hooks_.pull, *request, writer);
  }
  grpc::Status Push(Context*, grpc::ServerReader<v1::PushRequest>* reader,
                    v1::PushResponse* response) override {
    if (!hooks_.push) return {grpc::StatusCode::UNIMPLEMENTED, "no hook"};
    return ToGrpc(hooks_.push([&](v1::PushRequest* request) { return reader->Read(request); }, response));
  }

  const FakeServer& hooks_;
  std::unique_ptr<grpc::Server> server_;
};

FakeServer::FakeServer(const std::string& socket_path)
    : path_(socket_path), impl_(std::make_unique<Impl>(*this)) {}
FakeServer::~FakeServer() = default;

std::string FakeServer::endpoint() const { return absl::StrCat("unix:", path_); }
void FakeServer::Stop() { impl_.reset(); }
void FakeServer::Start() { impl_ = std::make_unique<Impl>(*this); }

}  // namespace sherd::rpc

#include "client/rpc/job_client.h"

#include <atomic>
#include <chrono>
#include <unordered_set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "client/rpc/listener.h"
#include "grpc/grpc.h"
#include "grpcpp/grpcpp.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/sherd/v1/shard.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"

namespace sherd::rpc {
namespace {

using runtime::CondVar;
using runtime::Mutex;
using runtime::MutexLock;

// Chunks hold up to 4 MiB and a page of tensors may be larger than gRPC's own limit of 4 MiB.
constexpr int kMaxMessageBytes = 64 << 20;

// While no server can be reached, one after the other is waited for.
constexpr absl::Duration kLookAtOneServer = absl::Milliseconds(20);
// Less than this is no time for a call.
constexpr absl::Duration kLeastTry = absl::Milliseconds(50);

struct Server {
  std::string endpoint;
  bool over_tcp = false;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::ClusterService::Stub> cluster;
  std::unique_ptr<v1::ShardService::Stub> shard;
  std::unique_ptr<v1::CheckpointService::Stub> checkpoint;
};

// gRPC shuts itself down with its last object, and that waits up to 10 s for a poller behind a write that was
// under way. So this reference to it is kept until the process ends.
void KeepGrpc() {
  static const bool kept = (grpc_init(), true);
  (void)kept;
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const runtime::TlsFiles& tls) {
  if (tls.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = tls.ca;
  options.pem_private_key = tls.key;
  options.pem_cert_chain = tls.certificate;
  return grpc::SslCredentials(options);
}

Server Dial(const std::string& endpoint, const runtime::Access& access) {
  KeepGrpc();
  grpc::ChannelArguments arguments;
  // A server that was killed is back within a fraction of a second: look for it that often.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  Server server;
  server.endpoint = endpoint;
  server.over_tcp = !absl::StartsWith(endpoint, "unix:");
  // Longest wait for one connection: on this host only one that is stopped takes longer.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, server.over_tcp ? 2000 : 500);
  server.channel = grpc::CreateCustomChannel(
      endpoint, server.over_tcp ? Credentials(access.tls) : grpc::InsecureChannelCredentials(), arguments);
  server.cluster = v1::ClusterService::NewStub(server.channel);
  server.shard = v1::ShardService::NewStub(server.channel);
  server.checkpoint = v1::CheckpointService::NewStub(server.channel);
  return server;
}

std::string OneLine(absl::string_view text) { return absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}}); }

}  // namespace

std::string NewToken() {
  absl::BitGen random;
  std::string token;
  for (int i = 0; i < 16; ++i) token.push_back(static_cast<char>(absl::Uniform<int>(random, 0, 256)));
  return token;
}

class JobClient::Impl {
 public:
  Impl(std::vector<std::string> endpoints, const Options& options) : options_(options) {
    for (const std::string& endpoint : endpoints) servers_.push_back(Dial(endpoint, options.access));
  }

  std::string endpoint() const { return Current().endpoint; }

  void Cancel() {
    MutexLock lock(mu_);
    cancelled_ = true;
    for (grpc::ClientContext* context : running_) context->TryCancel();
    wake_.SignalAll();
  }

  void NoteProgress() {
    answered_.store(true, std::memory_order_relaxed);
    progress_.fetch_add(1, std::memory_order_relaxed);
  }

  // A server said something, if only that it cannot do it now: from the first time on it is worth waiting
  // for.
  void NoteAnswer() {
    if (!answered_.exchange(true, std::memory_order_relaxed)) NoteProgress();
  }

  absl::Status RetryUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status()> attempt) {
    Backoff::Policy first = options_.retry;
    if (!answered_.load(std::memory_order_relaxed)) {
      first.patience = std::min(first.patience, options_.first_patience);
    }
    absl::optional<Backoff> backoff;
    backoff.emplace(first, runtime::SteadyNow());
    uint64_t progress = progress_.load(std::memory_order_relaxed);
    size_t tried = 0;
    for (;;) {
      absl::Status status = attempt();
      if (status.code() != absl::StatusCode::kUnavailable) return status;
      const absl::Time now = runtime::SteadyNow();
      if (now >= deadline) return status;
      if (const uint64_t after = progress_.load(std::memory_order_relaxed); after != progress) {
        progress = after;
        backoff.emplace(options_.retry, now);
      }
      // Each server gets its turn: one that is stopped can use all patience up.
      const bool turn_left = ++tried < servers_.size();
      const absl::optional<absl::Duration> wait = backoff->Next(now, Jitter());
      if (!wait && turn_left) continue;
      if (!wait) return status;
      if (!WaitToRepeat(std::min(*wait, deadline - now)))
        return absl::CancelledError("the call was cancelled");
      // One more try would be cut short, and say less.
      if (runtime::SteadyNow() + kLeastTry >= deadline) return status;
    }
  }

  // One unary RPC, repeated as the header says. `stub` picks the stub of a server, `method` the RPC.
  template <typename Response, typename Stub, typename Request, typename Method>
  absl::StatusOr<Response> Unary(Stub stub, Method method, const Request& request, absl::Time deadline) {
    Response response;
    absl::Status status = RetryUnavailable(deadline, [&] {
      return Attempt(deadline, [&](Server& server, grpc::ClientContext* context) {
        response.Clear();
        return ((*(server.*stub)).*method)(context, request, &response);
      });
    });
    if (!status.ok()) return status;
    return response;
  }

  template <typename Response, typename Stub, typename Request, typename Method>
  absl::Status FromServer(Stub stub, Method method, const Request& request, absl::Time deadline,
                          Receive<Response> receive) {
    absl::Status stopped;
    absl::Status status = Attempt(deadline, [&](Server& server, grpc::ClientContext* context) {
      auto reader = ((*(server.*stub)).*method)(context, request);
      Response response;
      while (reader->Read(&response)) {
        // After the cancellation only what is on its way already is read, unseen.
        if (!stopped.ok()) continue;
        NoteProgress();
        stopped = receive(response);
        if (!stopped.ok()) context->TryCancel();
      }
      return reader->Finish();
    });
    return stopped.ok() ? status : stopped;
  }

  template <typename Response, typename Stub, typename Request, typename Method>
  absl::StatusOr<Response> ToServer(Stub stub, Method method, absl::Time deadline, Send<Request> next) {
    Response response;
    absl::Status stopped;
    absl::Status status = Attempt(deadline, [&](Server& server, grpc::ClientContext* context) {
      auto writer = ((*(server.*stub)).*method)(context, &response);
      Request request;
      for (;;) {
        absl::StatusOr<bool> more = next(&request);
        if (!more.ok()) {
          stopped = more.status();
          context->TryCancel();
          break;
        }
        // A write fails when the server has ended the call: Finish() tells why.
        if (!*more || !writer->Write(request)) break;
      }
      if (stopped.ok()) writer->WritesDone();
      return writer->Finish();
    });
    if (!stopped.ok()) return stopped;
    if (!status.ok()) return status;
    return response;
  }

 private:
  const Server& Current() const { return servers_[current_.load(std::memory_order_relaxed)]; }

  // Runs `call` on the current server; when that cannot be reached, the next one becomes current.
  template <typename Call>
  absl::Status Attempt(absl::Time deadline, Call call) {
    const size_t index = current_.load(std::memory_order_relaxed);
    Server& server = servers_[index];
    grpc::ClientContext context;
    context.set_deadline(
        runtime::ToTimeOfDay(std::min(deadline, runtime::SteadyNow() + absl::Hours(24 * 365))));
    if (server.over_tcp && !options_.access.token.empty())
      context.AddMetadata(runtime::kTokenKey, options_.access.Bearer());
    {
      MutexLock lock(mu_);
      if (cancelled_) return absl::CancelledError("the call was cancelled");
      running_.insert(&context);
    }
    const grpc::Status result = call(server, &context);
    {
      MutexLock lock(mu_);
      running_.erase(&context);
    }
    absl::Status status = FromGrpc(result);
    if (status.code() == absl::StatusCode::kUnavailable) {
      const bool connected = server.channel->GetState(false) == GRPC_CHANNEL_READY;
      size_t expected = index;
      current_.compare_exchange_strong(expected, (index + 1) % servers_.size(), std::memory_order_relaxed);
      if (!connected) return Unreachable(status);
      NoteAnswer();
      return status;
    }
    if (status.code() == absl::StatusCode::kDeadlineExceeded && status.message() == "Deadline Exceeded") {
      return absl::DeadlineExceededError(
          absl::StrCat("no answer from ", server.endpoint, " in time; raise --timeout or look at its log"));
    }
    if (status.code() != absl::StatusCode::kDeadlineExceeded) NoteProgress();
    return status;
  }

  absl::Status Unreachable(const absl::Status& status) const {
    std::vector<std::string> names;
    bool over_tcp = false;
    for (const Server& server : servers_) {
      names.push_back(server.endpoint);
      over_tcp |= server.over_tcp;
    }
    if (const std::string stopped = StoppedListeners(names); !stopped.empty())
      return absl::UnavailableError(absl::StrCat("no server answers: ", stopped));
    const char* const remedy =
        !over_tcp ? "is the job running? `sherd gc` removes what a dead one left"
        : options_.access.tls.empty()
            ? "is the job running, and its port open? One that speaks TLS wants --tls-ca"
            : "is the job running, its port open, and does it speak TLS with certificates that fit these?";
    absl::string_view reason = status.message();
    // gRPC wraps the reason of the last connection attempt; the rest says nothing new.
    if (const size_t at = reason.rfind("last error: "); at != absl::string_view::npos) {
      reason.remove_prefix(at + 12);
      absl::ConsumePrefix(&reason, "UNKNOWN: ");
    }
    return absl::UnavailableError(absl::StrCat("no server answers at ", absl::StrJoin(names, ", "), " (",
                                               OneLine(reason), "); ", remedy));
  }

  double Jitter() {
    MutexLock lock(mu_);
    return absl::Uniform(random_, 0.0, 1.0);
  }

  // Until `duration` is over, or a server can be reached that could not be before. False when cancelled.
  bool WaitToRepeat(absl::Duration duration) {
    const absl::Time end = runtime::SteadyNow() + duration;
    const size_t first = current_.load(std::memory_order_relaxed);
    const bool connected = servers_[first].channel->GetState(false) == GRPC_CHANNEL_READY;
    for (size_t i = 0;; ++i) {
      const absl::Duration left = end - runtime::SteadyNow();
      {
        MutexLock lock(mu_);
        if (connected && left > absl::ZeroDuration() && !cancelled_) wake_.WaitFor(mu_, left);
        if (cancelled_) return false;
      }
      if (left <= absl::ZeroDuration()) return true;
      if (connected) continue;
      // gRPC gets on with a connection only while somebody waits for it.
      const size_t index = (first + i) % servers_.size();
      const absl::Time until = runtime::SteadyNow() + std::min(left, kLookAtOneServer);
      if (servers_[index].channel->WaitForConnected(runtime::ToTimeOfDay(until))) {
        current_.store(index, std::memory_order_relaxed);
        return true;
      }
    }
  }

  const Options options_;
  std::vector<Server> servers_;  // constant after construction; gRPC's stubs are thread-safe
  std::atomic<size_t> current_{0};
  std::atomic<bool> answered_{false};
  std::atomic<uint64_t> progress_{0};
  Mutex mu_;
  CondVar wake_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::unordered_set<grpc::ClientContext*> running_ ABSL_GUARDED_BY(mu_);
  absl::BitGen random_ ABSL_GUARDED_BY(mu_);
};

JobClient::JobClient(std::vector<std::string> endpoints, const Options& options)
    : impl_(std::make_unique<Impl>(std::move(endpoints), options)) {}
JobClient::~JobClient() = default;

std::string JobClient::endpoint() const { return impl_->endpoint(); }
void JobClient::Cancel() { impl_->Cancel(); }
void JobClient::NoteProgress() { impl_->NoteProgress(); }

absl::Status JobClient::RetryUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status()> attempt) {
  return impl_->RetryUnavailable(deadline, attempt);
}

absl::StatusOr<v1::Cluster> JobClient::GetCluster(const v1::GetClusterRequest& request, absl::Time deadline) {
  return impl_->Unary<v1::Cluster>(&Server::cluster, &v1::ClusterService::Stub::GetCluster, request,
                                   deadline);
}
absl::StatusOr<v1::AttachResponse> JobClient::Attach(const v1::AttachRequest& request, absl::Time deadline) {
  return impl_->Unary<v1::AttachResponse>(&Server::shard, &v1::ShardService::Stub::Attach, request, deadline);
}
absl::StatusOr<v1::CommitInitialResponse> JobClient::CommitInitial(const v1::CommitInitialRequest& request,
                                                                   absl::Time deadline) {
  return impl_->Unary<v1::CommitInitialResponse>(&Server::shard, &v1::ShardService::Stub::CommitInitial,
                                                 request, deadline);
}
absl::StatusOr<v1::DetachResponse> JobClient::Detach(const v1::DetachRequest& request, absl::Time deadline) {
  return impl_->Unary<v1::DetachResponse>(&Server::shard, &v1::ShardService::Stub::Detach, request, deadline);
}
absl::StatusOr<v1::ListTensorsResponse> JobClient::ListTensors(const v1::ListTensorsRequest& request,
                                                               absl::Time deadline) {
  return impl_->Unary<v1::ListTensorsResponse>(&Server::shard, &v1::ShardService::Stub::ListTensors, request,
                                               deadline);
}
absl::StatusOr<v1::Capabilities> JobClient::GetCapabilities(const v1::GetCapabilitiesRequest& request,
                                                            absl::Time deadline) {
  return impl_->Unary<v1::Capabilities>(&Server::shard, &v1::ShardService::Stub::GetCapabilities, request,
                                        deadline);
}
absl::StatusOr<v1::SnapshotInfo> JobClient::Snapshot(const v1::SnapshotRequest& request,
                                                     absl::Time deadline) {
  return impl_->Unary<v1::SnapshotInfo>(&Server::checkpoint, &v1::CheckpointService::Stub::Snapshot, request,
                                        deadline);
}
absl::StatusOr<v1::ReleaseResponse> JobClient::Release(const v1::ReleaseRequest& request,
                                                       absl::Time deadline) {
  return impl_->Unary<v1::ReleaseResponse>(&Server::checkpoint, &v1::CheckpointService::Stub::Release,
                                           request, deadline);
}
absl::StatusOr<v1::ListSnapshotsResponse> JobClient::ListSnapshots(const v1::ListSnapshotsRequest& request,
                                                                   absl::Time deadline) {
  return impl_->Unary<v1::ListSnapshotsResponse>(
      &Server::checkpoint, &v1::CheckpointService::Stub::ListSnapshots, request, deadline);
}

absl::Status JobClient::WatchCluster(const v1::WatchClusterRequest& request, absl::Time deadline,
                                     Receive<v1::Cluster> receive) {
  return impl_->FromServer<v1::Cluster>(&Server::cluster, &v1::ClusterService::Stub::WatchCluster, request,
                                        deadline, receive);
}
absl::Status JobClient::Resize(const v1::ResizeRequest& request, absl::Time deadline,
                               Receive<v1::ResizeProgress> receive) {
  return impl_->FromServer<v1::ResizeProgress>(&Server::cluster, &v1::ClusterService::Stub::Resize, request,
                                               deadline, receive);
}
absl::Status JobClient::Drain(const v1::DrainRequest& request, absl::Time deadline,
                              Receive<v1::ResizeProgress> receive) {
  return impl_->FromServer<v1::ResizeProgress>(&Server::cluster, &v1::ClusterService::Stub::Drain, request,
                                               deadline, receive);
}
absl::Status JobClient::ReadTensor(const v1::ReadTensorRequest& request, absl::Time deadline,
                                   Receive<v1::ReadTensorResponse> receive) {
  return impl_->FromServer<v1::ReadTensorResponse>(&Server::shard, &v1::ShardService::Stub::ReadTensor,
                                                   request, deadline, receive);
}
absl::Status JobClient::TensorStats(const v1::TensorStatsRequest& request, absl::Time deadline,
                                    Receive<v1::TensorStat> receive) {
  return impl_->FromServer<v1::TensorStat>(&Server::shard, &v1::ShardService::Stub::TensorStats, request,
                                           deadline, receive);
}
absl::Status JobClient::Pull(const v1::PullRequest& request, absl::Time deadline,
                             Receive<v1::Chunk> receive) {
  return impl_->FromServer<v1::Chunk>(&Server::checkpoint, &v1::CheckpointService::Stub::Pull, request,
                                      deadline, receive);
}

absl::Status JobClient::Save(const v1::SaveRequest& request, absl::Time deadline,
                             Receive<v1::SaveProgress> receive) {
  return impl_->FromServer<v1::SaveProgress>(&Server::checkpoint, &v1::CheckpointService::Stub::Save, request,
                                             deadline, receive);
}
absl::StatusOr<v1::RestoreResponse> JobClient::Restore(const v1::RestoreRequest& request,
                                                       absl::Time deadline) {
  return impl_->Unary<v1::RestoreResponse>(&Server::checkpoint, &v1::CheckpointService::Stub::Restore,
                                           request, deadline);
}
absl::StatusOr<v1::CompareCopiesResponse> JobClient::CompareCopies(const v1::CompareCopiesRequest& request,
                                                                   absl::Time deadline) {
  return impl_->Unary<v1::CompareCopiesResponse>(
      &Server::checkpoint, &v1::CheckpointService::Stub::CompareCopies, request, deadline);
}

absl::StatusOr<v1::WriteTensorResponse> JobClient::WriteTensor(Send<v1::WriteTensorRequest> next,
                                                               absl::Time deadline) {
  return impl_->ToServer<v1::WriteTensorResponse>(&Server::shard, &v1::ShardService::Stub::WriteTensor,
                                                  deadline, next);
}
absl::StatusOr<v1::PushResponse> JobClient::Push(Send<v1::PushRequest> next, absl::Time deadline) {
  return impl_->ToServer<v1::PushResponse>(&Server::checkpoint, &v1::CheckpointService::Stub::Push, deadline,
                                           next);
}

}  // namespace sherd::rpc

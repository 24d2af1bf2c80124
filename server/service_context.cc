#include "server/service_context.h"

#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "runtime/clock.h"
#include "runtime/hmac.h"

namespace sherd::server {
absl::Time DeadlineOf(const grpc::ServerContext& context) {
  return runtime::FromTimeOfDay(context.deadline());
}

absl::StatusOr<StreamBudget::Place> StreamBudget::Take(absl::string_view what) {
  if (used_.fetch_add(1) < most_) return Place(this);
  used_.fetch_sub(1);
  return absl::ResourceExhaustedError(
      absl::StrCat("this server serves ", most_, " ", what, " already: try again, or ask another server"));
}

absl::StatusOr<Node*> ServiceContext::node() const {
  Node* node = node_.load(std::memory_order_acquire);
  if (node == nullptr) return absl::UnavailableError("this server starts: repeat the call");
  return node;
}

absl::Status ServiceContext::Admit(const grpc::ServerContext& context, absl::string_view job,
                                   bool any_job) const {
  if (context.deadline() == std::chrono::system_clock::time_point::max()) {
    return absl::FailedPreconditionError(
        "the call has no deadline: set one, so that it cannot wait for ever");
  }
  // Peers on a unix socket were checked when they connected.
  const std::string peer = context.peer();
  if (!token_.empty() && absl::StartsWith(peer, "ipv")) {
    const auto shown = context.client_metadata().find(kTokenKey);
    if (shown == context.client_metadata().end())
      return absl::UnauthenticatedError("this server wants a token: give --token-file");
    if (!runtime::EqualInConstantTime(absl::string_view(shown->second.data(), shown->second.size()),
                                      absl::StrCat("Bearer ", token_))) {
      return absl::UnauthenticatedError(
          "the token is not this server's: give --token-file with the file it has (between hosts of a job: "
          "--secret-file)");
    }
  }
  if (job == job_ || (job.empty() && any_job)) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("this server serves job \"", job_, "\", not \"", job.substr(0, 64), "\""));
}

absl::StatusOr<std::shared_ptr<Coordinator>> ServiceContext::FindCoordinator(
    const grpc::ServerContext& context) const {
  absl::StatusOr<Node*> n = node();
  if (!n.ok()) return n.status();
  std::shared_ptr<Coordinator> c = (*n)->coordinator();
  if (c == nullptr && context.client_metadata().find(kForwardedKey) != context.client_metadata().end()) {
    return absl::UnavailableError("the coordinator has just changed: repeat the call");
  }
  return c;
}

absl::StatusOr<std::shared_ptr<Coordinator>> ServiceContext::AdmitChange(const grpc::ServerContext& context,
                                                                         absl::string_view job,
                                                                         absl::string_view token,
                                                                         bool any_job) const {
  absl::Status s = Admit(context, job, any_job);
  if (s.ok()) s = CheckToken(token);
  if (!s.ok()) return s;
  return FindCoordinator(context);
}

const OtherHosts* ServiceContext::Others() const {
  const absl::StatusOr<Node*> n = node();
  return n.ok() ? (*n)->others() : nullptr;
}

const OtherHosts* ServiceContext::OthersIfJoined() const {
  const absl::StatusOr<Node*> n = node();
  return n.ok() && (*n)->home().place().index > 0 ? (*n)->others() : nullptr;
}

absl::StatusOr<runtime::JobMemory*> ServiceContext::Memory() const {
  absl::StatusOr<Node*> n = node();
  if (!n.ok()) return n.status();
  return (*n)->home().Memory();
}

absl::StatusOr<std::unique_ptr<SnapshotLease>> SnapshotLease::Take(const ServiceContext* context,
                                                                   const grpc::ServerContext& call,
                                                                   uint64_t plane_mask, bool buffers) {
  std::random_device random;
  const std::string token = absl::StrCat("read ", random(), random());
  absl::StatusOr<runtime::JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  absl::StatusOr<std::shared_ptr<Coordinator>> c = context->FindCoordinator(call);
  if (!c.ok()) return c.status();
  if (*c != nullptr) {
    SnapshotOptions options;
    options.plane_mask = plane_mask;
    options.token = token;
    absl::StatusOr<SnapshotState> opened = (*c)->snapshots().Open(**memory, options, DeadlineOf(call));
    if (!opened.ok()) return opened.status();
    return std::unique_ptr<SnapshotLease>(new SnapshotLease(context, opened->id));
  }
  v1::SnapshotRequest request;
  request.set_job(context->job());
  request.set_token(token);
  for (int p = 0; p < (*memory)->planes(); ++p) {
    if (plane_mask >> p & 1) request.add_planes((*memory)->plane_name(p));
  }
  if (buffers) request.add_planes("buffer");
  v1::SnapshotInfo info;
  const absl::Status opened = FromGrpc(context->ForwardWhileLinked<v1::CheckpointService>(
      call, &v1::CheckpointService::Stub::Snapshot, request, &info));
  if (!opened.ok()) return opened;
  return std::unique_ptr<SnapshotLease>(new SnapshotLease(context, info.id()));
}

SnapshotLease::~SnapshotLease() {
  absl::StatusOr<Node*> node = context_->node();
  absl::StatusOr<runtime::JobMemory*> memory = context_->Memory();
  if (!node.ok() || !memory.ok()) return;
  if (std::shared_ptr<Coordinator> c = (*node)->coordinator(); c != nullptr) {
    c->snapshots().Release(**memory, id_);
    return;
  }
  absl::StatusOr<std::string> address = (*node)->CoordinatorAddress();
  if (!address.ok()) return;  // it expires
  const OtherHosts* const others = context_->OthersIfJoined();
  if (others != nullptr && !others->Problem(0).empty()) return;
  grpc::ClientContext client;
  (*node)->peers().Prepare(&client, runtime::SteadyNow() + absl::Seconds(5));
  v1::ReleaseRequest request;
  request.set_job(context_->job());
  request.set_id(id_);
  v1::ReleaseResponse response;
  (void)v1::CheckpointService::NewStub((*node)->peers().To(*address))->Release(&client, request, &response);
}

}  // namespace sherd::server

#include "server/cluster_service.h"

#include <functional>
#include <optional>

#include "proto/convert.h"
#include "proto/epoch_record.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "runtime/clock.h"

namespace sherd::server {
namespace {

// A person who asks how the job is must be told also when its coordinator stands still.
constexpr absl::Duration kStatusPatience = absl::Milliseconds(1500);
// On another host there is a view of its own to be shown, and within 2 s of a cut link it names the host.
constexpr absl::Duration kOtherHostPatience = absl::Seconds(1);

using grpc::ServerContext;
using grpc::Status;
using CoordinatorOr = absl::StatusOr<std::shared_ptr<Coordinator>>;

class ClusterServiceImpl final : public v1::ClusterService::Service {
 public:
  explicit ClusterServiceImpl(ServiceContext* context) : context_(context) {}

  Status Join(ServerContext* call, const v1::JoinRequest* request, v1::JoinResponse* response) override {
    absl::Status s = context_->Admit(*call, request->job());
    if (s.ok()) s = CheckProcess(request->process(), "process");
    if (!s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ClusterService>(*call, &v1::ClusterService::Stub::Join, *request,
                                                   response);
    s = (*c)->Join(request->id(), request->address(), request->host(), request->share(),
                   FromProto(request->process()), DeadlineOf(*call));
    if (!s.ok()) return ToGrpc(s);
    const v1::Cluster view = (*c)->View();
    response->set_epoch(view.epoch());
    response->set_job_dir(view.job_dir());
    response->set_coordinator_address(view.coordinator_address());
    for (const v1::Member& m : view.members()) {
      if (m.kind() == v1::Member::KIND_SERVER && m.id() == request->id())
        *response->mutable_slots() = m.slots();
    }
    return Status::OK;
  }

  Status Leave(ServerContext* call, const v1::LeaveRequest* request, v1::LeaveResponse* response) override {
    absl::Status s = context_->Admit(*call, request->job());
    if (s.ok()) s = CheckProcess(request->process(), "process");
    if (s.ok()) s = CheckToken(request->token());
    if (!s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ClusterService>(*call, &v1::ClusterService::Stub::Leave, *request,
                                                   response);
    return ToGrpc(
        (*c)->Leave(request->id(), FromProto(request->process()), request->token(), DeadlineOf(*call)));
  }

  Status Heartbeat(ServerContext* call, const v1::HeartbeatRequest* request,
                   v1::HeartbeatResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ClusterService>(*call, &v1::ClusterService::Stub::Heartbeat, *request,
                                                   response);
    response->set_epoch((*c)->View().epoch());
    return ToGrpc((*c)->Heartbeat(request->id(), FromProto(request->process())));
  }

  Status GetCluster(ServerContext* call, const v1::GetClusterRequest* request,
                    v1::Cluster* response) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr) return ViewFromElsewhere(*call, *request, response);
    *response = (*c)->View();
    return Status::OK;
  }

  Status GetJob(ServerContext* call, const v1::GetJobRequest* request,
                v1::GetJobResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return ToGrpc(node.status());
    const absl::StatusOr<JobSpec> spec = (*node)->home().Spec();
    if (!spec.ok()) return ToGrpc(spec.status());
    const absl::StatusOr<std::optional<v1::RestoreRecord>> restored = (*node)->home().Restored();
    if (!restored.ok()) return ToGrpc(restored.status());
    response->set_record(EncodeJobSpec(*spec));
    if (restored->has_value()) response->set_restore((*restored)->SerializeAsString());
    return Status::OK;
  }

  Status MemberExited(ServerContext* call, const v1::MemberExitedRequest* request,
                      v1::MemberExitedResponse* response) override {
    absl::Status s = context_->Admit(*call, request->job());
    if (s.ok()) s = CheckProcess(request->process(), "process");
    if (!s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ClusterService>(*call, &v1::ClusterService::Stub::MemberExited, *request,
                                                   response);
    return ToGrpc((*c)->MemberExited(request->host(), request->address(), FromProto(request->process())));
  }

  Status ReportHost(ServerContext* call, const v1::ReportHostRequest* request,
                    v1::ReportHostResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ClusterService>(*call, &v1::ClusterService::Stub::ReportHost, *request,
                                                   response);
    return ToGrpc((*c)->ReportHost(*request));
  }

  Status WatchCluster(ServerContext* call, const v1::WatchClusterRequest* request,
                      grpc::ServerWriter<v1::Cluster>* writer) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardAnswers<v1::ClusterService>(*call, &v1::ClusterService::Stub::WatchCluster,
                                                          *request, writer);
    uint64_t seen = request->after_version();
    while (!call->IsCancelled()) {
      // Short waits, so that a caller that has gone does not hold a thread.
      const absl::StatusOr<v1::Cluster> view = (*c)->WaitForChange(
          seen, std::min(DeadlineOf(*call), runtime::SteadyNow() + absl::Milliseconds(500)));
      if (absl::IsDeadlineExceeded(view.status()) && runtime::SteadyNow() < DeadlineOf(*call)) continue;
      if (!view.ok()) return ToGrpc(view.status());
      seen = view->version();
      if (!writer->Write(*view)) break;
    }
    return Status::CANCELLED;
  }

  Status Resize(ServerContext* call, const v1::ResizeRequest* request,
                grpc::ServerWriter<v1::ResizeProgress>* writer) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token());
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardAnswers<v1::ClusterService>(*call, &v1::ClusterService::Stub::Resize, *request,
                                                          writer);
    if (request->servers() != 0 && request->trainers() != 0) {
      return ToGrpc(absl::InvalidArgumentError(absl::StrCat(
          "servers=", request->servers(), " and trainers=", request->trainers(), ": change one at a time")));
    }
    if (request->trainers() == 0 && request->from_step() != 0) {
      return ToGrpc(absl::InvalidArgumentError(absl::StrCat(
          "from_step=", request->from_step(), " without trainers: only their number waits for a step")));
    }
    if (request->trainers() != 0) {
      return Finish(writer, (*c)->ResizeTrainers(request->trainers(), Step(request->from_step()),
                                                 request->give_up_step(), Epoch(request->epoch()),
                                                 request->token(), DeadlineOf(*call), Tell(call, writer)));
    }
    return Finish(writer, (*c)->Resize(request->servers(), Epoch(request->epoch()), request->token(),
                                       DeadlineOf(*call), Tell(call, writer)));
  }

  Status Drain(ServerContext* call, const v1::DrainRequest* request,
               grpc::ServerWriter<v1::ResizeProgress>* writer) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token());
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardAnswers<v1::ClusterService>(*call, &v1::ClusterService::Stub::Drain, *request,
                                                          writer);
    return Finish(writer, (*c)->Drain(request->id(), Epoch(request->epoch()), request->token(),
                                      DeadlineOf(*call), Tell(call, writer)));
  }

 private:
  // The coordinator's, or this server's own if it does not answer: a person wants to know why.
  Status ViewFromElsewhere(const ServerContext& call, const v1::GetClusterRequest& request,
                           v1::Cluster* response) const {
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return ToGrpc(node.status());
    std::optional<v1::Cluster> view = (*node)->ViewWithoutCoordinator();
    Status status = Status::OK;
    if (!view.has_value()) {
      const bool other_host = (*node)->options().place.index > 0;
      status =
          context_->Forward<v1::ClusterService>(call, &v1::ClusterService::Stub::GetCluster, request,
                                                response, other_host ? kOtherHostPatience : kStatusPatience);
      const absl::Status answer = FromGrpc(status);
      if (absl::IsDeadlineExceeded(answer) || absl::IsUnavailable(answer))
        view = (*node)->ViewUnanswered(answer);
    }
    if (!view.has_value()) return status;
    *response = *std::move(view);
    return Status::OK;
  }

  static Coordinator::Progress Tell(ServerContext* call, grpc::ServerWriter<v1::ResizeProgress>* writer) {
    return [call, writer](const std::string& waits_for) {
      v1::ResizeProgress message;
      message.set_progress(waits_for);
      return !call->IsCancelled() && writer->Write(message);
    };
  }

  static Status Finish(grpc::ServerWriter<v1::ResizeProgress>* writer,
                       const absl::StatusOr<Coordinator::Resized>& done) {
    if (!done.ok()) return ToGrpc(done.status());
    v1::ResizeProgress message;
    v1::ResizeProgress::Result* result = message.mutable_result();
    ToProto(done->pause, result->mutable_pause());
    ToProto(done->duration, result->mutable_duration());
    result->set_changed_elements(done->changed_elements);
    result->set_epoch(done->epoch.value());
    result->set_step(done->step.value());
    writer->Write(message);
    return Status::OK;
  }

  ServiceContext* const context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeClusterService(ServiceContext* context) {
  return std::make_unique<ClusterServiceImpl>(context);
}

}  // namespace sherd::server

// What the services share: who may call, which job is meant, where the coordinator is, and how many streams
// may run.
//
//   if (absl::Status s = context_->Admit(*ctx, request->job()); !s.ok()) return ToGrpc(s);
//   absl::StatusOr<std::shared_ptr<Coordinator>> c = context_->FindCoordinator(*ctx);
//   if (c.ok() && *c == nullptr) return context_->Forward<Service>(*ctx, &Stub::Method, *request, response);
//
// Thread-safe.
#ifndef SHERD_SERVER_SERVICE_CONTEXT_H_
#define SHERD_SERVER_SERVICE_CONTEXT_H_

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/sync_stream.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/link_guard.h"
#include "server/node.h"
#include "server/peers.h"
#include "server/snapshots.h"

namespace sherd::server {

// When the caller gives up.
absl::Time DeadlineOf(const grpc::ServerContext& context);

// Streams that may run at once in this server.
class StreamBudget {
 public:
  explicit StreamBudget(int most) : most_(most) {}
  int most() const { return most_; }

  // One of them, until destroyed.
  class Place {
   public:
    Place(Place&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)) {}
    ~Place() {
      if (budget_ != nullptr) budget_->used_.fetch_sub(1);
    }

   private:
    friend class StreamBudget;
    explicit Place(StreamBudget* budget) : budget_(budget) {}
    StreamBudget* budget_;
  };
  // RESOURCE_EXHAUSTED when all are taken.
  absl::StatusOr<Place> Take(absl::string_view what);

 private:
  const int most_;
  std::atomic<int> used_{0};
};

class ServiceContext {
 public:
  // `node` is borrowed, and set before the first call arrives that needs it: services are registered before
  // there is one.
  explicit ServiceContext(std::string job, std::string token)
      : job_(std::move(job)), token_(std::move(token)) {}
  void SetNode(Node* node) { node_.store(node, std::memory_order_release); }

  const std::string& job() const { return job_; }
  // UNAVAILABLE while the server starts.
  absl::StatusOr<Node*> node() const;

  // FAILED_PRECONDITION: no deadline. UNAUTHENTICATED: no or a wrong token (TCP peers). NOT_FOUND: another
  // job. `job` may be empty if `any_job`.
  absl::Status Admit(const grpc::ServerContext& context, absl::string_view job, bool any_job = false) const;

  // The coordinator if it lives here; null if it is to be asked elsewhere; UNAVAILABLE if the call was passed
  // on here by mistake.
  absl::StatusOr<std::shared_ptr<Coordinator>> FindCoordinator(const grpc::ServerContext& context) const;
  // Of a call that changes something: Admit, a token by which it is known when it is repeated
  // (INVALID_ARGUMENT), and FindCoordinator.
  absl::StatusOr<std::shared_ptr<Coordinator>> AdmitChange(const grpc::ServerContext& context,
                                                           absl::string_view job, absl::string_view token,
                                                           bool any_job = false) const;

  // Passes a call on to the coordinator. Stub: of the service; method: its unary method. After `patience`
  // without an answer: DEADLINE_EXCEEDED, which names the coordinator.
  template <typename Service, typename Request, typename Response>
  grpc::Status Forward(const grpc::ServerContext& context,
                       grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                       const Request& request, Response* response,
                       absl::Duration patience = absl::InfiniteDuration()) const;
  // The same of a method that changes nothing that lasts: on another host than the coordinator's it is given
  // up with UNAVAILABLE, in the link's words, when the link to that is not up.
  template <typename Service, typename Request, typename Response>
  grpc::Status ForwardWhileLinked(const grpc::ServerContext& context,
                                  grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        Response*),
                                  const Request& request, Response* response) const;
  // As Forward, or (`while_linked`) as ForwardWhileLinked, of a method that answers with a stream.
  template <typename Service, typename Request, typename Message>
  grpc::Status ForwardAnswers(const grpc::ServerContext& context,
                              std::unique_ptr<grpc::ClientReader<Message>> (Service::Stub::*method)(
                                  grpc::ClientContext*, const Request&),
                              const Request& request, grpc::ServerWriter<Message>* writer,
                              bool while_linked = false) const;
  // As Forward, of a method that takes a stream, of which `message` was read already; it is used for the
  // rest.
  template <typename Service, typename Message, typename Response>
  grpc::Status ForwardMessages(
      const grpc::ServerContext& context,
      std::unique_ptr<grpc::ClientWriter<Message>> (Service::Stub::*method)(grpc::ClientContext*, Response*),
      Message& message, grpc::ServerReader<Message>* reader, Response* response) const;

  // The job's memory; FAILED_PRECONDITION before the first Attach.
  absl::StatusOr<runtime::JobMemory*> Memory() const;

  // The other hosts of the job; null if there are none, or while the server starts.
  const OtherHosts* Others() const;
  // The same, on a host that is not the coordinator's; else null.
  const OtherHosts* OthersIfJoined() const;

  StreamBudget& reads() { return reads_; }
  StreamBudget& writes() { return writes_; }
  // Of what other hosts pass on here.
  StreamBudget& shares() { return shares_; }

 private:
  // call(stub, client context, address) at the coordinator, with the caller's deadline or `latest`.
  template <typename Service, typename Call>
  grpc::Status AtCoordinator(const grpc::ServerContext& context, absl::Time latest, Call call) const;

  const std::string job_, token_;
  std::atomic<Node*> node_{nullptr};
  StreamBudget reads_{16};
  StreamBudget writes_{4};
  StreamBudget shares_{16};
};

template <typename Service, typename Call>
grpc::Status ServiceContext::AtCoordinator(const grpc::ServerContext& context, absl::Time latest,
                                           Call call) const {
  absl::StatusOr<Node*> n = node();
  if (!n.ok()) return ToGrpc(n.status());
  absl::StatusOr<std::string> address = (*n)->CoordinatorAddress();
  if (!address.ok()) return ToGrpc(address.status());
  grpc::ClientContext client;
  (*n)->peers().Prepare(&client, std::min(DeadlineOf(context), latest));
  return call(*Service::NewStub((*n)->peers().To(*address)), &client, *address);
}

template <typename Service, typename Request, typename Response>
grpc::Status ServiceContext::Forward(const grpc::ServerContext& context,
                                     grpc::Status (Service::Stub::*method)(grpc::ClientContext*,
                                                                           const Request&, Response*),
                                     const Request& request, Response* response,
                                     absl::Duration patience) const {
  const absl::Time patient = runtime::SteadyNow() + patience;
  return AtCoordinator<Service>(
      context, patient, [&](auto& stub, grpc::ClientContext* client, const std::string& address) {
        grpc::Status status = (stub.*method)(client, request, response);
        if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && runtime::SteadyNow() >= patient) {
          status = ToGrpc(absl::DeadlineExceededError(
              absl::StrCat("the coordinator, at ", address, ", lives but has not answered for ",
                           absl::FormatDuration(patience), ": it is stopped or very busy")));
        }
        return status;
      });
}

template <typename Service, typename Request, typename Response>
grpc::Status ServiceContext::ForwardWhileLinked(const grpc::ServerContext& context,
                                                grpc::Status (Service::Stub::*method)(grpc::ClientContext*,
                                                                                      const Request&,
                                                                                      Response*),
                                                const Request& request, Response* response) const {
  return AtCoordinator<Service>(
      context, absl::InfiniteFuture(), [&](auto& stub, grpc::ClientContext* client, const std::string&) {
        LinkGuard guard(OthersIfJoined(), 0, client);
        const grpc::Status status = (stub.*method)(client, request, response);
        const std::string problem = guard.End();
        return status.ok() || problem.empty() ? status : ToGrpc(absl::UnavailableError(problem));
      });
}

template <typename Service, typename Request, typename Message>
grpc::Status ServiceContext::ForwardAnswers(const grpc::ServerContext& context,
                                            std::unique_ptr<grpc::ClientReader<Message>> (
                                                Service::Stub::*method)(grpc::ClientContext*, const Request&),
                                            const Request& request, grpc::ServerWriter<Message>* writer,
                                            bool while_linked) const {
  return AtCoordinator<Service>(
      context, absl::InfiniteFuture(), [&](auto& stub, grpc::ClientContext* client, const std::string&) {
        LinkGuard guard(while_linked ? OthersIfJoined() : nullptr, 0, client);
        const auto reader = (stub.*method)(client, request);
        Message message;
        while (reader->Read(&message)) {
          if (!writer->Write(message)) client->TryCancel();
        }
        const grpc::Status status = reader->Finish();
        const std::string problem = guard.End();
        return status.ok() || problem.empty() ? status : ToGrpc(absl::UnavailableError(problem));
      });
}

template <typename Service, typename Message, typename Response>
grpc::Status ServiceContext::ForwardMessages(
    const grpc::ServerContext& context,
    std::unique_ptr<grpc::ClientWriter<Message>> (Service::Stub::*method)(grpc::ClientContext*, Response*),
    Message& message, grpc::ServerReader<Message>* reader, Response* response) const {
  return AtCoordinator<Service>(context, absl::InfiniteFuture(),
                                [&](auto& stub, grpc::ClientContext* client, const std::string&) {
                                  const auto writer = (stub.*method)(client, response);
                                  do {
                                    if (!writer->Write(message)) break;
                                  } while (reader->Read(&message));
                                  writer->WritesDone();
                                  return writer->Finish();
                                });
}

// A snapshot of the current step for one answer, released when destroyed. Opened by the coordinator, wherever
// it is.
class SnapshotLease {
 public:
  static absl::StatusOr<std::unique_ptr<SnapshotLease>> Take(const ServiceContext* context,
                                                             const grpc::ServerContext& call,
                                                             uint64_t plane_mask, bool buffers);
  ~SnapshotLease();
  uint64_t id() const { return id_; }

 private:
  SnapshotLease(const ServiceContext* context, uint64_t id) : context_(context), id_(id) {}
  const ServiceContext* const context_;
  const uint64_t id_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SERVICE_CONTEXT_H_

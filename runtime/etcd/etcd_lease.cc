#include "runtime/etcd/etcd_lease.h"

#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"

namespace sherd::runtime {
namespace {

// Goes on while the host is suspended, and does not jump.
absl::Duration SinceBoot() {
  timespec now;
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::DurationFromTimespec(now);
}

}  // namespace

absl::StatusOr<std::unique_ptr<EtcdLease>> EtcdLease::Grant(std::shared_ptr<EtcdClient> client,
                                                            absl::Duration ttl, EtcdCancel* cancel,
                                                            absl::Time deadline, std::function<void()> lost) {
  etcdserverpb::LeaseGrantRequest request;
  request.set_ttl(std::max<int64_t>(1, absl::ToInt64Seconds(ttl)));
  etcdserverpb::LeaseGrantResponse response;
  absl::Duration asked;
  const absl::Status s = client->Call("get a lease", deadline, cancel,
                                      [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                        asked = SinceBoot();
                                        return server.lease->LeaseGrant(context, request, &response);
                                      });
  if (!s.ok()) return s;
  if (!response.error().empty() || response.id() == 0 || response.ttl() <= 0)
    return absl::UnavailableError(absl::StrCat("etcd granted no lease: ", response.error()));
  const absl::Duration granted = absl::Seconds(response.ttl());
  return std::unique_ptr<EtcdLease>(
      new EtcdLease(std::move(client), response.id(), granted, asked + granted, std::move(lost)));
}

EtcdLease::EtcdLease(std::shared_ptr<EtcdClient> client, int64_t id, absl::Duration ttl, absl::Duration until,
                     std::function<void()> lost)
    : client_(std::move(client)),
      id_(id),
      ttl_(ttl),
      lost_(std::move(lost)),
      until_ns_(absl::ToInt64Nanoseconds(until)) {
  thread_ = std::thread([this] { Run(); });
}

EtcdLease::~EtcdLease() {
  cancel_.Cancel();
  thread_.join();
  // Whoever waits for it to end waits for the ttl otherwise.
  RevokeEtcdLease(*client_, id_, SteadyNow() + absl::Seconds(1)).IgnoreError();
}

bool EtcdLease::alive() const { return absl::ToInt64Nanoseconds(SinceBoot()) < until_ns_.load(); }

void EtcdLease::Run() {
  while (cancel_.Sleep(ttl_ / 3)) {
    if (Renew()) continue;
    if (cancel_.cancelled()) return;
    until_ns_.store(0);
    return lost_();
  }
}

bool EtcdLease::Renew() {
  etcdserverpb::LeaseKeepAliveRequest request;
  request.set_id(id_);
  etcdserverpb::LeaseKeepAliveResponse response;
  absl::Duration asked;
  const absl::Duration left = absl::Nanoseconds(until_ns_.load()) - SinceBoot();
  const absl::Status s =
      client_->Call("renew a lease", SteadyNow() + left, &cancel_,
                    [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                      response.Clear();
                      asked = SinceBoot();
                      const auto stream = server.lease->LeaseKeepAlive(context);
                      const bool answered = stream->Write(request) && stream->Read(&response);
                      // Else it would wait for the end of the stream.
                      if (answered) context->TryCancel();
                      const grpc::Status end = stream->Finish();
                      if (answered) return grpc::Status::OK;
                      return end.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "ended the stream") : end;
                    });
  if (!s.ok() || response.ttl() <= 0) return false;
  until_ns_.store(absl::ToInt64Nanoseconds(asked + absl::Seconds(response.ttl())));
  return true;
}

absl::Status RevokeEtcdLease(EtcdClient& client, int64_t id, absl::Time deadline) {
  etcdserverpb::LeaseRevokeRequest request;
  request.set_id(id);
  etcdserverpb::LeaseRevokeResponse response;
  const absl::Status s = client.Call("end a lease", deadline, nullptr,
                                     [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                       return server.lease->LeaseRevoke(context, request, &response);
                                     });
  return absl::IsNotFound(s) ? absl::OkStatus() : s;
}

}  // namespace sherd::runtime

// Calls from a server of a job of several hosts to servers of the others, for what each host has its part of:
// pools of snapshots, values.
//
//   OtherHosts others(&home, &peers, [&](int host) { return node.HostAddress(host); });
//   absl::Status s = others.ForEach(deadline, [&](int host, OtherHosts::Stub& stub, auto* context) {
//     return FromGrpc(stub.ReleasePool(context, request, &response));
//   });
//
// TCP says nothing of a cut cable: what tells is the data link of the two hosts, which is named silent within
// two seconds (runtime/link_liveness.h). A call to a host whose link is not up ends with UNAVAILABLE, in the
// link's words.
//
// Thread-safe. Calls block.
#ifndef SHERD_SERVER_OTHER_HOSTS_H_
#define SHERD_SERVER_OTHER_HOSTS_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "server/job_home.h"
#include "server/peers.h"

namespace sherd::server {

class OtherHosts {
 public:
  using Stub = v1::CheckpointService::Stub;
  // Called on a thread of its own for each host. The context has its deadline and what servers show.
  using Call = std::function<absl::Status(int host, Stub& stub, grpc::ClientContext* context)>;

  // `home` and `peers` are borrowed. `address_of`: where a server of a host answers others; empty: not known.
  OtherHosts(JobHome* home, Peers* peers, std::function<std::string(int host)> address_of)
      : home_(home), peers_(peers), address_of_(std::move(address_of)) {}

  // Calls all others at once and returns when the calls have ended. The first error, which names the host;
  // with it the other calls are cancelled. CANCELLED once `go_on`, asked about twenty times a second, is
  // false.
  absl::Status ForEach(absl::Time deadline, const Call& call, const std::function<bool()>& go_on = {}) const;
  // Calls one of them, likewise.
  absl::Status To(int host, absl::Time deadline, const Call& call,
                  const std::function<bool()>& go_on = {}) const;

  // For a call of one's own, which nobody cancels when the link is silent. `context` gets its deadline.
  // UNAVAILABLE: the host cannot be called now.
  absl::StatusOr<std::unique_ptr<Stub>> Prepare(int host, absl::Time deadline,
                                                grpc::ClientContext* context) const;
  // What is wrong with the data link to a host, in words; empty: nothing that is known.
  std::string Problem(int host) const;
  const std::string& job() const { return home_->dir().job(); }
  // What another host said, as said of it.
  static absl::Status Named(int host, const absl::Status& status);

 private:
  absl::Status CallAll(const std::vector<int>& hosts, absl::Time deadline, const Call& call,
                       const std::function<bool()>& go_on) const;

  JobHome* const home_;
  Peers* const peers_;
  const std::function<std::string(int)> address_of_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_OTHER_HOSTS_H_

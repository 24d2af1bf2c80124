// Channels to the other servers of a job, one per address, and what goes with every call to them.
//
//   Peers peers({token, tls});
//   auto stub = v1::ClusterService::NewStub(peers.To("unix:/run/x.sock"));
//   grpc::ClientContext context;
//   peers.Prepare(&context, deadline);
//
// Thread-safe.
#ifndef SHERD_SERVER_PEERS_H_
#define SHERD_SERVER_PEERS_H_

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "runtime/access_files.h"
#include "runtime/mutex.h"
#include "server/rpc_server.h"

namespace sherd::server {

class Peers {
 public:
  struct Options {
    std::string token;  // shown with every call; empty: none
    TlsFiles tls;       // for TCP; empty: plain text
    // Calls to other servers are not passed on again: they go to the coordinator itself. From another host
    // they go to any server of the first one, which passes them on.
    bool to_coordinator = true;
  };
  explicit Peers(Options options) : options_(std::move(options)) {}

  std::shared_ptr<grpc::Channel> To(const std::string& address);

  // Sets the deadline, the token, and the mark that the call comes from a server: it will not be passed on
  // again.
  void Prepare(grpc::ClientContext* context, absl::Time deadline) const;

  const std::string& token() const { return options_.token; }

 private:
  const Options options_;
  runtime::Mutex mu_;
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_ ABSL_GUARDED_BY(mu_);
};

// Metadata keys.
inline constexpr char kForwardedKey[] = "sherd-forwarded";
using runtime::kTokenKey;

}  // namespace sherd::server

#endif  // SHERD_SERVER_PEERS_H_

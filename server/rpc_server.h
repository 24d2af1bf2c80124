// Listens for RPCs: on unix sockets, whose peers must be this user (or root), and on TCP, loopback unless
// remote peers are allowed.
//
//   RpcOptions options;
//   options.listen = {"unix:" + dir + "/s0.sock", "127.0.0.1:0"};
//   auto server = RpcServer::Start(options, {&cluster, &shard, &checkpoint});
//   (*server)->addresses();                              // with the ports that were given
//
// Health and reflection are always served. Thread-safe.
#ifndef SHERD_SERVER_RPC_SERVER_H_
#define SHERD_SERVER_RPC_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/impl/service_type.h"
#include "runtime/access_files.h"

namespace sherd::server {

// Most bytes of one message, in and out. A layout of a million tensors fits; chunks are far smaller.
inline constexpr int kMaxMessageBytes = 128 << 20;

using runtime::TlsFiles;

struct RpcOptions {
  std::vector<std::string> listen;  // "unix:PATH" or "HOST:PORT" (port 0: any), at least one
  bool allow_remote = false;        // TCP addresses other than loopback
  bool asks_token = false;          // the services turn away TCP callers without one (ServiceContext)
  TlsFiles tls;                     // for TCP; contents of files
};

// INVALID_ARGUMENT: not HOST:PORT, unknown host, or not loopback without `allow_remote`; ALREADY_EXISTS: in
// use.
absl::Status CheckTcpAddress(const std::string& address, bool allow_remote);

class RpcServer {
 public:
  // Services are borrowed until the server is gone.
  //   INVALID_ARGUMENT     an address is none, or not loopback without allow_remote; or not loopback where
  //                        callers show neither a token nor a certificate: names the flags that ask for one
  //   ALREADY_EXISTS       somebody listens there
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcOptions& options,
                                                          const std::vector<grpc::Service*>& services);

  // Shutdown().
  ~RpcServer();

  // As given, ports filled in; unix sockets first.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Takes no more calls, and ends those that are not done after `grace`. A second call does nothing.
  void Shutdown(absl::Duration grace);

 private:
  struct Impl;
  RpcServer();
  absl::Status Listen(const RpcOptions& options, const std::vector<grpc::Service*>& services);

  std::vector<std::string> addresses_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_RPC_SERVER_H_

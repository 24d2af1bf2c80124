#include "server/rpc_server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "grpc/grpc.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_posix.h"
#include "runtime/clock.h"
#include "runtime/net_address.h"
#include "runtime/unique_fd.h"
#include "runtime/unix_listener.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

// A stream holds a thread while it lasts; past this many, calls are answered with RESOURCE_EXHAUSTED.
constexpr int kMaxThreads = 256;

void LogGrpc(gpr_log_func_args* args) {
  // What matters of gRPC's own words is in the Status that a caller gets.
  spdlog::debug("grpc {}:{}: {}", args->file, args->line, args->message);
}

// Once per process. gRPC stays initialised: in 1.51 the last grpc_shutdown() can sit 10 s behind a poller.
void InitGrpc() {
  static const bool done = [] {
    gpr_set_log_function(LogGrpc);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    grpc_init();
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)done;
}

std::shared_ptr<grpc::ServerCredentials> Credentials(const TlsFiles& tls) {
  if (tls.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(tls.ca.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls.ca;
  options.pem_key_cert_pairs.push_back({tls.key, tls.certificate});
  return grpc::SslServerCredentials(options);
}

}  // namespace

// gRPC would only log what is wrong with an address.
absl::Status CheckTcpAddress(const std::string& address, bool allow_remote) {
  absl::StatusOr<runtime::HostPort> at = runtime::ParseHostPort(address);
  if (!at.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on \"", address, "\": not HOST:PORT or unix:PATH"));
  }
  absl::StatusOr<std::vector<runtime::SocketAddress>> found = runtime::Resolve(*at);
  if (!found.ok()) return found.status();
  for (const runtime::SocketAddress& a : *found) {
    if (absl::Status s = runtime::CheckMayListen(a, allow_remote); !s.ok()) return s;
    runtime::UniqueFd fd(::socket(a.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int one = 1;
    if (fd.get() < 0) continue;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (::bind(fd.get(), a.get(), a.size()) == 0) continue;
    const std::string what = absl::StrCat("cannot listen on ", address, ": ", std::strerror(errno));
    if (errno == EADDRINUSE)
      return absl::AlreadyExistsError(absl::StrCat(what, "; choose another port, or 0 for any"));
    return absl::InvalidArgumentError(what);
  }
  return absl::OkStatus();
}

namespace {

// Whoever reaches the host could read and change the job. REQUIRES: CheckTcpAddress(address, true).
absl::Status CheckAsksWho(const std::string& address, const RpcOptions& options) {
  if (options.asks_token || !options.tls.ca.empty()) return absl::OkStatus();
  const absl::StatusOr<runtime::HostPort> at = runtime::ParseHostPort(address);
  if (!at.ok()) return at.status();
  const absl::StatusOr<std::vector<runtime::SocketAddress>> found = runtime::Resolve(*at);
  if (!found.ok()) return found.status();
  for (const runtime::SocketAddress& a : *found) {
    if (a.IsLoopback()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", address,
                     ": other hosts could read and change the job, as callers show nothing; "
                     "give --token-file FILE, or --tls-ca with --tls-cert and --tls-key"));
  }
  return absl::OkStatus();
}

}  // namespace

struct RpcServer::Impl {
  std::unique_ptr<grpc::Server> server;
  std::vector<std::unique_ptr<runtime::UnixListener>> listeners;
  bool down = false;
};

RpcServer::RpcServer() : impl_(std::make_unique<Impl>()) {}

RpcServer::~RpcServer() { Shutdown(absl::Seconds(1)); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcOptions& options,
                                                            const std::vector<grpc::Service*>& services) {
  InitGrpc();
  std::unique_ptr<RpcServer> server(new RpcServer());
  absl::Status listening = server->Listen(options, services);
  if (!listening.ok()) return listening;
  return server;
}

absl::Status RpcServer::Listen(const RpcOptions& options, const std::vector<grpc::Service*>& services) {
  if (options.listen.empty())
    return absl::InvalidArgumentError("no address to listen on: give unix:PATH or HOST:PORT");
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  // A port that another process has is an error, not a share of its calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::vector<std::string> tcp;
  for (const std::string& address : options.listen) {
    if (absl::StartsWith(address, "unix:")) continue;
    if (absl::Status s = CheckTcpAddress(address, options.allow_remote); !s.ok()) return s;
    if (absl::Status s = CheckAsksWho(address, options); !s.ok()) return s;
    tcp.push_back(address);
  }
  std::vector<int> ports(tcp.size(), 0);
  for (size_t i = 0; i < tcp.size(); ++i)
    builder.AddListeningPort(tcp[i], Credentials(options.tls), &ports[i]);
  for (grpc::Service* service : services) builder.RegisterService(service);
  impl_->server = builder.BuildAndStart();
  for (size_t i = 0; i < tcp.size(); ++i) {
    if (impl_->server != nullptr && ports[i] != 0) continue;
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", tcp[i], ": in use, or the certificate and key do not fit"));
  }
  if (impl_->server == nullptr) return absl::InternalError("gRPC could not start a server");
  for (const std::string& address : options.listen) {
    if (!absl::StartsWith(address, "unix:")) continue;
    runtime::UnixListener::Options listen;
    listen.path = std::string(absl::StripPrefix(address, "unix:"));
    listen.on_connection = [server = impl_->server.get()](runtime::UnixPeer peer) {
      // gRPC wants a descriptor that does not block.
      const int fd = peer.fd.Release();
      ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
      grpc::AddInsecureChannelFromFd(server, fd);
    };
    listen.on_refused = [path = listen.path](pid_t pid, uid_t uid) {
      spdlog::warn("{}: refused process {} of user {}", path, pid, uid);
    };
    absl::StatusOr<std::unique_ptr<runtime::UnixListener>> listener =
        runtime::UnixListener::Start(std::move(listen));
    if (!listener.ok()) return listener.status();
    impl_->listeners.push_back(*std::move(listener));
    addresses_.push_back(address);
  }
  for (size_t i = 0; i < tcp.size(); ++i) {
    addresses_.push_back(absl::StrCat(tcp[i].substr(0, tcp[i].rfind(':')), ":", ports[i]));
  }
  return absl::OkStatus();
}

void RpcServer::Shutdown(absl::Duration grace) {
  if (impl_->down || impl_->server == nullptr) return;
  impl_->down = true;
  for (auto& listener : impl_->listeners) listener->Stop();
  impl_->server->Shutdown(runtime::ToTimeOfDay(runtime::SteadyNow() + grace));
  impl_->server->Wait();
}

}  // namespace sherd::server

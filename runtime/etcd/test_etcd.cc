#include "runtime/etcd/test_etcd.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/clock.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

constexpr char kProgram[] = "/usr/bin/etcd";
constexpr absl::Duration kPatience = absl::Seconds(60);

// Ports that were free a moment ago, all different.
std::vector<int> FreePorts(int count) {
  std::vector<UniqueFd> sockets;
  std::vector<int> ports;
  for (int i = 0; i < count; ++i) {
    sockets.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(sockets.back().get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ::getsockname(sockets.back().get(), reinterpret_cast<sockaddr*>(&address), &size);
    ports.push_back(ntohs(address.sin_port));
  }
  return ports;
}

}  // namespace

bool TestEtcd::Installed() { return ::access(kProgram, X_OK) == 0; }

TestEtcd::TestEtcd(int servers) : processes_(servers) {
  const std::vector<int> ports = FreePorts(2 * servers);
  for (int s = 0; s < servers; ++s) {
    endpoints_.push_back(absl::StrCat("127.0.0.1:", ports[2 * s]));
    peers_.push_back(absl::StrCat("http://127.0.0.1:", ports[2 * s + 1]));
  }
  EtcdClient::Options options;
  options.endpoints = endpoints_;
  options.patience = kPatience;
  client_ = std::make_unique<EtcdClient>(std::move(options));
  for (int s = 0; s < servers; ++s) Start(s);
  AwaitAnswer();
}

void TestEtcd::Start(int server) {
  std::vector<std::string> cluster;
  for (size_t s = 0; s < peers_.size(); ++s) cluster.push_back(absl::StrCat("e", s, "=", peers_[s]));
  const std::string url = absl::StrCat("http://", endpoints_[server]);
  ChildProcess::Options options;
  options.argv = {kProgram,
                  "--name",
                  absl::StrCat("e", server),
                  "--data-dir",
                  absl::StrCat(root_.path(), "/e", server),
                  "--listen-client-urls",
                  url,
                  "--advertise-client-urls",
                  url,
                  "--listen-peer-urls",
                  peers_[server],
                  "--initial-advertise-peer-urls",
                  peers_[server],
                  "--initial-cluster",
                  absl::StrJoin(cluster, ","),
                  "--initial-cluster-token",
                  root_.path(),
                  "--heartbeat-interval",
                  "100",
                  "--election-timeout",
                  "1000",
                  "--logger",
                  "zap"};
  options.stdout_stream = {ChildProcess::Stream::Kind::kFile, absl::StrCat(root_.path(), "/log", server)};
  options.stderr_stream = options.stdout_stream;
  absl::StatusOr<ChildProcess> started = ChildProcess::Spawn(options);
  ASSERT_TRUE(started.ok()) << started.status();
  processes_[server].emplace(*std::move(started));
}

void TestEtcd::Kill(int server) { processes_[server].reset(); }

void TestEtcd::Stop(int server) { ASSERT_TRUE(processes_[server]->Signal(SIGSTOP).ok()); }

void TestEtcd::Continue(int server) { ASSERT_TRUE(processes_[server]->Signal(SIGCONT).ok()); }

void TestEtcd::AwaitAnswer() {
  etcdserverpb::RangeRequest request;
  request.set_key("none");
  etcdserverpb::RangeResponse response;
  const absl::Status s =
      client_->Call("wait for etcd", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
        return server.kv->Range(context, request, &response);
      });
  std::ostringstream log;
  if (!s.ok()) log << std::ifstream(absl::StrCat(root_.path(), "/log0")).rdbuf();
  ASSERT_TRUE(s.ok()) << s << "\n" << log.str();
}

int TestEtcd::Leader() {
  for (const absl::Time end = SteadyNow() + kPatience; SteadyNow() < end;) {
    for (size_t s = 0; s < endpoints_.size(); ++s) {
      if (!processes_[s].has_value()) continue;
      EtcdClient one({{endpoints_[s]}});
      etcdserverpb::StatusResponse status;
      const absl::Status asked = one.Call("find the leader", SteadyNow() + absl::Seconds(1), nullptr,
                                          [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                            return server.maintenance->Status(context, {}, &status);
                                          });
      if (asked.ok() && status.leader() != 0 && status.leader() == status.header().member_id())
        return static_cast<int>(s);
    }
  }
  ADD_FAILURE() << "no etcd server leads";
  return 0;
}

void TestEtcd::Compact() {
  etcdserverpb::RangeRequest now;
  now.set_key("none");
  etcdserverpb::RangeResponse read;
  absl::Status s = client_->Call("read", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
    return server.kv->Range(context, now, &read);
  });
  ASSERT_TRUE(s.ok()) << s;
  etcdserverpb::CompactionRequest compact;
  compact.set_revision(read.header().revision());
  compact.set_physical(true);
  etcdserverpb::CompactionResponse done;
  s = client_->Call("compact", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
    return server.kv->Compact(context, compact, &done);
  });
  ASSERT_TRUE(s.ok() || absl::IsOutOfRange(s)) << s;
}

}  // namespace sherd::runtime

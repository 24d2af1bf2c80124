// sherdd: one shard server of a job.
//
//   sherdd --job gpt --listen unix:/run/s0.sock --expect 2
//
// Exit status: 0 after an orderly end (a signal, or a resize that needs this server no more), 1 after a
// failure, 2 for a usage error.
#include <signal.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/host_map.h"
#include "core/job_spec.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/status.h"
#include "runtime/access_files.h"
#include "runtime/clock.h"
#include "runtime/doorbell.h"
#include "runtime/etcd/job_store.h"
#include "runtime/exit_watch.h"
#include "runtime/host_place.h"
#include "runtime/job_dir.h"
#include "runtime/net_address.h"
#include "runtime/secret_file.h"
#include "server/checkpoint_service.h"
#include "server/cluster_service.h"
#include "server/copy_watch.h"
#include "server/host_agent.h"
#include "server/job_home.h"
#include "server/joined_store.h"
#include "server/metrics.h"
#include "server/node.h"
#include "server/peers.h"
#include "server/rpc_server.h"
#include "server/service_context.h"
#include "server/shard_service.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

struct Flags {
  std::string job, id, store, join, job_dir, metrics, token_file, tls_cert, tls_key, tls_ca;
  std::string secret_file, first_host, data_address;
  runtime::HostPlace place;
  int trainers = 0;
  std::string log_level = "info";
  std::vector<std::string> listen;
  int expect = 1;
  int min_trainers = 1, max_trainers = kMaxWorldSize;
  int threads = 0;
  uint64_t verify_every = 0;
  bool allow_remote = false;
};

void Declare(CLI::App& app, Flags& f) {
  app.add_option("--job", f.job, "Name of the job: 1 to 40 characters of [A-Za-z0-9._-]")->required();
  app.add_option("--listen", f.listen,
                 "unix:PATH or HOST:PORT (port 0: any); may be given several times. Default: a socket in the "
                 "job's directory");
  app.add_option(
      "--id", f.id,
      "Name of this server in the job; one that takes a dead server's name takes its slot. Default: s<pid>");
  app.add_option("--expect", f.expect, "Servers (of this host) that form the first epoch")
      ->check(CLI::Range(1, runtime::kMaxSlots));
  app.add_option("--min-trainers", f.min_trainers, "Least trainers that a resize may ask for")
      ->check(CLI::Range(1, kMaxWorldSize));
  app.add_option("--max-trainers", f.max_trainers, "Most trainers that a resize may ask for")
      ->check(CLI::Range(1, kMaxWorldSize));
  app.add_option("--join", f.join, "Address of a server of the job, to find the job's directory");
  app.add_option("--job-dir", f.job_dir,
                 "The job's directory, made by `sherd run` or another server. Default: made under /dev/shm, "
                 "or $SHERD_SHM_ROOT");
  app.add_option("--hosts", f.place.count, "Hosts of the job")->check(CLI::Range(1, kMaxHosts));
  app.add_option("--host", f.place.index,
                 "Which of them this is; 0 is the first, where the coordinator lives")
      ->check(CLI::Range(0, kMaxHosts - 1));
  app.add_option("--trainers", f.trainers, "Trainers on this host, in a job of several hosts")
      ->check(CLI::Range(0, kMaxWorldSize));
  app.add_option("--first-host", f.first_host, "HOST:PORT of a server of the first host, on any other");
  app.add_option("--secret-file", f.secret_file,
                 "File with the secret of a job of several hosts (mode 0600)");
  app.add_option("--data-address", f.data_address,
                 "HOST[:PORT] where other hosts send gradients and parameters (port 0 or none: any)");
  app.add_option(
      "--store", f.store,
      "Where epochs are kept: file:DIR or etcd://HOST:PORT,...[/PREFIX]. Default: in the job's directory");
  app.add_option("--threads", f.threads,
                 "Threads that work on blocks. Default: this host's cores divided by --expect")
      ->check(CLI::Range(1, runtime::kMaxWorkers));
  app.add_option("--verify-every", f.verify_every,
                 "Compare the copies of the state that hosts hold every so many steps")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 40));
  app.add_option("--metrics", f.metrics, "HOST:PORT to serve Prometheus metrics on");
  app.add_option("--log-level", f.log_level, "What is written to stderr")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  app.add_option("--token-file", f.token_file,
                 "File (mode 0600) with a token that TCP callers must show: 16 to 4096 printable characters");
  app.add_option("--tls-cert", f.tls_cert, "PEM certificate for TCP");
  app.add_option("--tls-key", f.tls_key, "PEM key for TCP");
  app.add_option("--tls-ca", f.tls_ca, "PEM certificates that callers' certificates must be signed by");
  app.add_flag("--allow-remote", f.allow_remote,
               "Listen on addresses that other hosts can reach, with --token-file or --tls-ca");
}

// What callers must show, and what this server shows to others.
absl::StatusOr<runtime::Access> ReadAccess(const Flags& f) {
  if (f.place.several() && !f.token_file.empty()) {
    return absl::InvalidArgumentError(
        "--token-file does not go with --hosts: the token of such a job comes from its --secret-file");
  }
  runtime::AccessFiles files;
  files.token = f.token_file;
  files.secret = f.secret_file;
  files.certificate = f.tls_cert;
  files.key = f.tls_key;
  files.ca = f.tls_ca;
  return runtime::ReadAccess(files, runtime::AccessSide::kServer);
}

// Asks a running server where the job is.
absl::StatusOr<std::string> DirFrom(const Flags& f, Peers& peers) {
  grpc::ClientContext context;
  peers.Prepare(&context, runtime::SteadyNow() + absl::Seconds(10));
  context.set_wait_for_ready(true);
  v1::GetClusterRequest request;
  request.set_job(f.job);
  v1::Cluster cluster;
  const absl::Status s =
      FromGrpc(v1::ClusterService::NewStub(peers.To(f.join))->GetCluster(&context, request, &cluster));
  if (!s.ok()) return absl::Status(s.code(), absl::StrCat("cannot join at ", f.join, ": ", s.message()));
  return cluster.job_dir();
}

absl::StatusOr<runtime::JobDir> FindDir(const Flags& f, Peers& peers) {
  std::string path = f.job_dir;
  if (path.empty() && !f.join.empty()) {
    absl::StatusOr<std::string> there = DirFrom(f, peers);
    if (!there.ok()) return there.status();
    path = *there;
  }
  if (path.empty()) {
    absl::StatusOr<std::string> root = runtime::ShmRoot(std::getenv(runtime::kShmRootVariable));
    if (!root.ok()) return root.status();
    return runtime::JobDir::Create(*root, f.job);
  }
  absl::StatusOr<runtime::JobDir> dir = runtime::JobDir::Open(path, runtime::JobDir::Hold::kMember);
  if (dir.ok() && dir->job() != f.job) {
    return absl::InvalidArgumentError(
        absl::StrCat("--job is ", f.job, " but ", path, " is the directory of job ", dir->job()));
  }
  return dir;
}

// All that lives as long as the server; members are destroyed in the opposite order.
class Program {
 public:
  explicit Program(Flags flags) : flags_(std::move(flags)) {}

  absl::Status Start() {
    const absl::StatusOr<runtime::StorePlace> place = runtime::ParseStorePlace(flags_.store);
    if (!place.ok()) return place.status();
    const absl::StatusOr<runtime::Access> access = ReadAccess(flags_);
    if (!access.ok()) return access.status();
    if (absl::Status s = ReadHostFlags(); !s.ok()) return s;
    peers_ = std::make_unique<Peers>(
        Peers::Options{access->token, access->tls, /*to_coordinator=*/flags_.place.index == 0});
    absl::StatusOr<runtime::JobDir> dir = FindDir(flags_, *peers_);
    if (!dir.ok()) return dir.status();
    dir_.emplace(*std::move(dir));
    absl::StatusOr<std::unique_ptr<runtime::MetaStore>> local = runtime::OpenLocalStore(*dir_);
    if (!local.ok()) return local.status();
    local_ = *std::move(local);
    if (flags_.place.index > 0) {
      store_ = std::make_unique<JoinedStore>(flags_.job, flags_.first_host, peers_.get());
      return StartServer(*access);
    }
    absl::StatusOr<std::unique_ptr<runtime::MetaStore>> store = runtime::OpenJobStore(*place, *dir_);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    return StartServer(*access);
  }

  // Until a signal comes or the node ends.
  absl::Status Run(const sigset_t& signals) {
    for (;;) {
      const timespec now = {0, 0};
      if (const int got = ::sigtimedwait(&signals, nullptr, &now); got > 0) {
        spdlog::info("signal {}: leaving", got);
        return absl::OkStatus();
      }
      const absl::Status ended = node_->Wait(runtime::SteadyNow() + absl::Milliseconds(50));
      if (!absl::IsDeadlineExceeded(ended)) return ended;
    }
  }

  void Stop() {
    if (node_ != nullptr) {
      const absl::Status left = node_->Leave(runtime::SteadyNow() + absl::Seconds(2));
      if (!left.ok()) spdlog::info("not signed off: {}", left.ToString());
      metrics_.reset();
      copies_.reset();
      context_->SetNode(nullptr);
    }
    if (server_ != nullptr) server_->Shutdown(absl::Milliseconds(500));
    node_.reset();
    server_.reset();
    home_.reset();
    if (dir_.has_value()) {
      const absl::StatusOr<bool> removed = dir_->RemoveOwn();
      if (!removed.ok()) spdlog::warn("{}", removed.status().ToString());
      // The last one of the job: it leaves nothing in a store that outlives the directory either.
      if (removed.ok() && *removed && store_ != nullptr) {
        const absl::Status cleared = runtime::ClearJobStore(*store_, dir_->uuid());
        if (!cleared.ok()) spdlog::warn("{}", cleared.ToString());
      }
    }
  }

 private:
  // The secret and the data port of a job of several hosts.
  absl::Status ReadHostFlags() {
    const Flags& f = flags_;
    if (f.place.index >= f.place.count) {
      return absl::InvalidArgumentError(
          absl::StrCat("--host ", f.place.index, " of --hosts ", f.place.count, ": it must be smaller"));
    }
    if (!f.place.several()) return absl::OkStatus();
    if (f.secret_file.empty() || f.data_address.empty() || (f.place.index > 0) == f.first_host.empty()) {
      return absl::InvalidArgumentError(
          "--hosts needs --secret-file and --data-address, and --first-host on every host but the first");
    }
    absl::StatusOr<runtime::Secret> secret = runtime::ReadSecretFile(f.secret_file);
    if (!secret.ok()) return secret.status();
    absl::StatusOr<runtime::SocketAddress> listen =
        runtime::ChooseAddress({f.data_address, "", absl::nullopt});
    if (!listen.ok()) return listen.status();
    agent_.emplace();
    agent_->secret = *secret;
    agent_->listen = *listen;
    agent_->allow_remote = f.allow_remote;
    return absl::OkStatus();
  }

  absl::Status StartServer(const runtime::Access& access) {
    absl::StatusOr<std::unique_ptr<runtime::ExitWatch>> watch = runtime::MakeExitWatch();
    if (!watch.ok()) return watch.status();
    watch_ = *std::move(watch);
    home_ = std::make_unique<JobHome>(&*dir_, store_.get(), local_.get(), flags_.place);
    context_ = std::make_unique<ServiceContext>(flags_.job, access.token);
    services_.push_back(MakeClusterService(context_.get()));
    services_.push_back(MakeShardService(context_.get()));
    services_.push_back(MakeCheckpointService(context_.get()));
    RpcOptions rpc;
    rpc.listen = flags_.listen;
    if (rpc.listen.empty())
      rpc.listen.push_back(absl::StrCat("unix:", dir_->path(), "/", flags_.id, ".sock"));
    if (agent_.has_value()) {
      // Servers of other hosts ask any of this one's for what this host has.
      runtime::SocketAddress others = agent_->listen;
      others.set_port(0);
      rpc.listen.push_back(others.ToString());
    }
    rpc.allow_remote = flags_.allow_remote;
    rpc.asks_token = !access.token.empty();
    rpc.tls = access.tls;
    std::vector<grpc::Service*> borrowed;
    for (const auto& s : services_) borrowed.push_back(s.get());
    absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(rpc, borrowed);
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    return StartNode();
  }

  absl::Status StartNode() {
    Node::Options node;
    node.job = flags_.job;
    node.id = flags_.id;
    node.address = server_->addresses().front();
    node.expected_servers = flags_.expect;
    node.min_trainers = flags_.min_trainers;
    node.max_trainers = flags_.max_trainers;
    node.place = flags_.place;
    if (agent_.has_value()) {
      node.share.set_index(flags_.place.index);
      node.share.set_ranks(flags_.trainers);
      node.share.set_servers(flags_.expect);
      node.share.set_address(agent_->listen.host());
      node.rpc_address = server_->addresses().back();
    }
    node.agent = agent_;
    const int cores = runtime::UsableCores();
    const int here = flags_.expect;
    node.engine.workers = flags_.threads > 0 ? flags_.threads : std::max(1, cores / here);
    // Beside each owner a trainer is busy.
    node.engine.spin = runtime::SpinPolicy::ForHost(2 * here * node.engine.workers, cores);
    // Owners wait for each other no longer than for the one whose core was the last to be free.
    node.engine.spin_among_owners =
        runtime::SpinPolicy::ForHost(here * node.engine.workers, cores, absl::Microseconds(100));
    node.engine.on_error = [](const absl::Status& s) { spdlog::error("engine: {}", s.ToString()); };
    absl::StatusOr<std::unique_ptr<Node>> started =
        Node::Start(std::move(node), home_.get(), peers_.get(), watch_.get());
    if (!started.ok()) return started.status();
    node_ = *std::move(started);
    context_->SetNode(node_.get());
    for (const std::string& address : server_->addresses())
      spdlog::info("server {} of job {} listens on {}", flags_.id, flags_.job, address);
    if (flags_.verify_every > 0) copies_ = std::make_unique<CopyWatch>(flags_.verify_every, context_.get());
    if (flags_.metrics.empty()) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<Metrics>> metrics =
        Metrics::Start(flags_.metrics, flags_.allow_remote, node_.get(), copies_.get());
    if (!metrics.ok()) return metrics.status();
    metrics_ = *std::move(metrics);
    return absl::OkStatus();
  }

  const Flags flags_;
  absl::optional<HostAgent::Options> agent_;  // in a job of several hosts
  std::unique_ptr<Peers> peers_;
  std::optional<runtime::JobDir> dir_;
  std::unique_ptr<runtime::MetaStore> local_, store_;
  std::unique_ptr<runtime::ExitWatch> watch_;
  std::unique_ptr<JobHome> home_;
  std::unique_ptr<ServiceContext> context_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<CopyWatch> copies_;
  std::unique_ptr<Metrics> metrics_;
};

int Fail(const absl::Status& why) {
  std::fprintf(stderr, "sherdd: %s\n", absl::StrReplaceAll(why.message(), {{"\n", " "}}).c_str());
  return absl::IsInvalidArgument(why) ? 2 : 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "One shard server of a job: holds a part of the training state and applies the optimizer to it.",
      "sherdd");
  Declare(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    std::fprintf(stderr, "sherdd: %s; see sherdd --help\n", e.what());
    return 2;
  }
  if (flags.id.empty()) flags.id = absl::StrCat("s", ::getpid());
  if (!IsValidName(flags.id))
    return Fail(absl::InvalidArgumentError(
        absl::StrCat("--id ", flags.id, " is not 1..64 characters of [A-Za-z0-9._-]")));
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("sherdd", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  spdlog::set_pattern(absl::StrCat("%H:%M:%S.%e ", flags.id, " %l %v"));
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  ::umask(077);
  // Blocked before any thread starts, so that only Run() sees them.
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  // A checkpoint larger than files may be is an error of that save.
  ::signal(SIGXFSZ, SIG_IGN);

  Program program(flags);
  absl::Status s = program.Start();
  if (s.ok()) s = program.Run(signals);
  program.Stop();
  return s.ok() ? 0 : Fail(s);
}

}  // namespace
}  // namespace sherd::server

int main(int argc, char** argv) {
  // The libraries below throw when memory runs out or a system call cannot fail otherwise.
  try {
    return sherd::server::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sherdd: %s\n", e.what());
  } catch (...) {
    std::fprintf(stderr, "sherdd: ended by an exception of an unknown kind\n");
  }
  return 1;
}

#include "server/node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "grpcpp/client_context.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/decided.h"
#include "server/snapshot_table.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr char kElection[] = "coordinator";
constexpr char kMemoryElection[] = "memory";
constexpr absl::Duration kRetry = absl::Milliseconds(50);
constexpr absl::Duration kJoinPatience = absl::Seconds(30);
constexpr absl::Duration kWatchLife = absl::Minutes(10);
constexpr absl::Duration kReportPatience = absl::Seconds(2);
constexpr absl::Duration kPredecessorPatience = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<Node>> Node::Start(Options options, JobHome* home, Peers* peers,
                                                  runtime::ExitWatch* watch) {
  std::unique_ptr<Node> node(new Node(std::move(options), home, peers, watch));
  if (node->options_.place.index > 0) {
    node->host_watch_ = std::make_unique<HostWatch>(
        node->options_.place.Name(), watch,
        [n = node.get()](const runtime::ProcessIdentity& process) { return n->ReportExit(process); });
  }
  const auto leads = [n = node.get()](bool does) {
    return [n, does] {
      MutexLock lock(n->mu_);
      n->leads_ = does;
      if (!does) n->deposed_ = true;
      // At once: whatever it is about to do, another may be doing.
      if (!does && n->coordinator_ != nullptr) n->coordinator_->Stop();
      n->changed_.SignalAll();
    };
  };
  absl::StatusOr<std::unique_ptr<runtime::MetaStore::Leadership>> leadership = home->store().Elect(
      kElection, absl::StrCat(node->options_.id, " ", node->options_.address), leads(true), leads(false));
  if (!leadership.ok()) return leadership.status();
  node->leadership_ = *std::move(leadership);
  node->steer_ = std::thread([n = node.get()] { n->Steer(); });
  if (node->options_.agent.has_value()) {
    HostAgent::Options agent = *node->options_.agent;
    agent.place = node->options_.place;
    agent.tick = [n = node.get()] { n->Tick(); };
    agent.report = [n = node.get()](v1::ReportHostRequest report) {
      return n->ReportHost(std::move(report));
    };
    node->agent_ = std::make_unique<HostAgent>(std::move(agent), home);
  }
  node->follow_ = std::thread([n = node.get()] { n->Follow(); });
  return node;
}

Node::Node(Options options, JobHome* home, Peers* peers, runtime::ExitWatch* watch)
    : options_(std::move(options)),
      home_(home),
      peers_(peers),
      watch_(watch),
      self_(runtime::Self()),
      others_(options_.place.several()
                  ? std::make_unique<OtherHosts>(home, peers, [this](int host) { return HostAddress(host); })
                  : nullptr) {}

Node::~Node() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (watching_ != nullptr) watching_->TryCancel();
    changed_.SignalAll();
  }
  if (follow_.joinable()) follow_.join();
  if (steer_.joinable()) steer_.join();
  agent_.reset();
  host_watch_.reset();
  {
    MutexLock lock(engine_mu_);
    engine_.reset();
  }
  // The coordinator's hands off first, so that a successor finds nothing half done.
  std::shared_ptr<Coordinator> coordinator;
  {
    MutexLock lock(mu_);
    coordinator = std::move(coordinator_);
  }
  coordinator.reset();
  memory_.reset();
  leadership_.reset();
}

bool Node::stopping() const {
  MutexLock lock(mu_);
  return stop_;
}

absl::Status Node::why_ended() const {
  MutexLock lock(mu_);
  return why_ended_;
}

bool Node::settled() const {
  if (host_watch_ != nullptr && !host_watch_->told_all()) return false;
  MutexLock lock(mu_);
  return std::any_of(seen_.members().begin(), seen_.members().end(), [&](const v1::Member& m) {
    return m.kind() == v1::Member::KIND_SERVER && m.id() == options_.id && m.process().pid() == self_.pid &&
           m.process().start_ticks() == self_.start_ticks;
  });
}

void Node::End(absl::Status why) {
  MutexLock lock(mu_);
  if (ended_) return;
  if (!why.ok()) spdlog::error("server {} ends: {}", options_.id, why.ToString());
  ended_ = true;
  why_ended_ = std::move(why);
  changed_.SignalAll();
}

absl::Status Node::Wait(absl::Time deadline) {
  MutexLock lock(mu_);
  while (!ended_) {
    const absl::Time now = runtime::SteadyNow();
    if (now >= deadline) return absl::DeadlineExceededError("still a member");
    changed_.WaitFor(mu_, deadline - now);
  }
  return why_ended_;
}

std::shared_ptr<Coordinator> Node::coordinator() const {
  MutexLock lock(mu_);
  return leads_ && !deposed_ ? coordinator_ : nullptr;
}

// ---- Leading

void Node::Steer() {
  for (;;) {
    bool start = false, step_down = false;
    {
      MutexLock lock(mu_);
      for (;;) {
        if (stop_) return;
        step_down = deposed_;
        start = leads_ && (memory_ == nullptr || holds_memory_) && coordinator_ == nullptr;
        if (start || step_down) break;
        changed_.Wait(mu_);
      }
    }
    if (step_down) {
      StepDown();
    } else if (memory_ == nullptr) {
      absl::StatusOr<std::unique_ptr<runtime::MetaStore::Leadership>> memory = home_->local().Elect(
          kMemoryElection, options_.id,
          [this] {
            MutexLock lock(mu_);
            holds_memory_ = true;
            changed_.SignalAll();
          },
          [] {});
      if (!memory.ok()) return End(memory.status());
      memory_ = *std::move(memory);
    } else {
      StartCoordinator();
    }
  }
}

void Node::StartCoordinator() {
  spdlog::info("server {} coordinates job {}", options_.id, options_.job);
  absl::StatusOr<std::unique_ptr<Coordinator>> c =
      Coordinator::Start({options_.job, options_.expected_servers, options_.id, options_.address,
                          options_.min_trainers, options_.max_trainers, options_.place.Name(),
                          options_.place.count, &leadership_->store(), others_.get()},
                         home_, watch_);
  MutexLock lock(mu_);
  if (c.ok()) {
    coordinator_ = *std::move(c);
    if (!leads_ || deposed_ || stop_) coordinator_->Stop();
    changed_.SignalAll();
  } else if (absl::IsUnavailable(c.status())) {
    spdlog::warn("{}", c.status().ToString());
    if (!stop_) changed_.WaitFor(mu_, kRetry);  // then again, while it leads
  } else if (!ended_) {
    ended_ = true;
    why_ended_ = c.status();
    leads_ = false;
    changed_.SignalAll();
  }
}

void Node::StepDown() {
  std::shared_ptr<Coordinator> old;
  {
    MutexLock lock(mu_);
    old = std::move(coordinator_);
    deposed_ = false;
  }
  if (old != nullptr) {
    spdlog::warn("server {} coordinates job {} no longer: {}", options_.id, options_.job,
                 home_->store().Trouble().empty() ? "its lease has ended" : home_->store().Trouble());
    old->End();
  }
  memory_.reset();
  MutexLock lock(mu_);
  holds_memory_ = false;
}

absl::StatusOr<std::string> Node::CoordinatorAddress() const {
  absl::StatusOr<std::string> leader = home_->store().Leader(kElection);
  if (absl::IsUnavailable(leader.status())) return leader.status();
  if (!leader.ok()) {
    return absl::UnavailableError(
        absl::StrCat("job ", options_.job, " has no coordinator at the moment: repeat the call"));
  }
  const std::vector<std::string> parts = absl::StrSplit(*leader, absl::MaxSplits(' ', 1));
  if (parts.size() != 2) return absl::UnavailableError("the coordinator has not said its address");
  return parts[1];
}

// ---- Following

void Node::Follow() {
  const absl::Time patient = runtime::SteadyNow() + kPredecessorPatience;
  while (!stopping()) {
    absl::Status s = FollowOnce();
    // On another host than the coordinator's the predecessor's end is reported at this moment.
    if (absl::IsAlreadyExists(s) && host_watch_ != nullptr && runtime::SteadyNow() < patient)
      s = absl::UnavailableError(s.message());
    if (absl::IsAlreadyExists(s) || absl::IsFailedPrecondition(s) || absl::IsInvalidArgument(s) ||
        absl::IsNotFound(s) || absl::IsPermissionDenied(s) || absl::IsUnauthenticated(s)) {
      return End(s);
    }
    if (std::shared_ptr<Coordinator> c = coordinator(); c != nullptr && !c->status().ok())
      return End(c->status());
    MutexLock lock(mu_);
    if (!stop_) changed_.WaitFor(mu_, kRetry);
  }
}

absl::Status Node::FollowOnce() {
  {
    // Its own socket is closed by now: waiting for a connection would only hold up the end.
    MutexLock lock(mu_);
    if (stop_ || leaving_) return absl::CancelledError("stopping");
  }
  absl::StatusOr<std::string> address = CoordinatorAddress();
  if (!address.ok()) return address.status();
  const std::shared_ptr<grpc::Channel> channel = peers_->To(*address);
  // gRPC gets on with a connection only while somebody waits for it.
  if (!channel->WaitForConnected(runtime::ToTimeOfDay(runtime::SteadyNow() + kRetry))) {
    return absl::UnavailableError(absl::StrCat("the coordinator does not answer at ", *address));
  }
  std::unique_ptr<v1::ClusterService::Stub> stub = v1::ClusterService::NewStub(channel);
  if (host_watch_ != nullptr) {
    // If all servers of this host had died, nobody has said so, nor who else died here meanwhile.
    grpc::ClientContext context;
    peers_->Prepare(&context, runtime::SteadyNow() + kJoinPatience);
    v1::GetClusterRequest request;
    request.set_job(options_.job);
    v1::Cluster cluster;
    if (const absl::Status seen = FromGrpc(stub->GetCluster(&context, request, &cluster)); !seen.ok())
      return seen;
    host_watch_->Look(cluster);
  }
  {
    grpc::ClientContext context;
    peers_->Prepare(&context, runtime::SteadyNow() + kJoinPatience);
    v1::JoinRequest request;
    request.set_job(options_.job);
    request.set_id(options_.id);
    request.set_address(options_.address);
    request.set_host(options_.place.Name());
    if (options_.place.several()) *request.mutable_share() = options_.share;
    request.mutable_process()->set_pid(self_.pid);
    request.mutable_process()->set_start_ticks(self_.start_ticks);
    v1::JoinResponse response;
    {
      MutexLock lock(mu_);
      if (stop_ || leaving_) return absl::CancelledError("stopping");
      watching_ = &context;
    }
    const absl::Status joined = FromGrpc(stub->Join(&context, request, &response));
    {
      MutexLock lock(mu_);
      watching_ = nullptr;
    }
    if (!joined.ok()) return joined;
  }
  grpc::ClientContext context;
  peers_->Prepare(&context, runtime::SteadyNow() + kWatchLife);
  {
    MutexLock lock(mu_);
    if (stop_ || leaving_) return absl::CancelledError("stopping");
    watching_ = &context;
  }
  v1::WatchClusterRequest request;
  request.set_job(options_.job);
  std::unique_ptr<grpc::ClientReader<v1::Cluster>> reader = stub->WatchCluster(&context, request);
  v1::Cluster cluster;
  while (reader->Read(&cluster)) OnCluster(cluster);
  {
    MutexLock lock(mu_);
    watching_ = nullptr;
  }
  const absl::Status ended = FromGrpc(reader->Finish());
  return absl::UnavailableError(absl::StrCat("the coordinator's stream ended: ", ended.message()));
}

absl::Status Node::ReportExit(const runtime::ProcessIdentity& process) {
  absl::StatusOr<std::string> address = CoordinatorAddress();
  if (!address.ok()) return address.status();
  grpc::ClientContext context;
  peers_->Prepare(&context, runtime::SteadyNow() + kReportPatience);
  v1::MemberExitedRequest request;
  request.set_job(options_.job);
  request.set_host(options_.place.Name());
  request.set_address(options_.share.address());
  request.mutable_process()->set_pid(process.pid);
  request.mutable_process()->set_start_ticks(process.start_ticks);
  v1::MemberExitedResponse response;
  return FromGrpc(
      v1::ClusterService::NewStub(peers_->To(*address))->MemberExited(&context, request, &response));
}

absl::Status Node::ReportHost(v1::ReportHostRequest report) {
  absl::StatusOr<std::string> address = CoordinatorAddress();
  if (!address.ok()) return address.status();
  grpc::ClientContext context;
  peers_->Prepare(&context, runtime::SteadyNow() + kReportPatience);
  report.set_job(options_.job);
  report.set_rpc_address(options_.rpc_address);
  report.set_address(options_.share.address());
  v1::ReportHostResponse response;
  return FromGrpc(v1::ClusterService::NewStub(peers_->To(*address))->ReportHost(&context, report, &response));
}

std::string Node::HostAddress(int host) const {
  MutexLock lock(mu_);
  for (const v1::Host& h : seen_.hosts()) {
    if (h.index() == host) return h.rpc_address();
  }
  return "";
}

void Node::Tick() {
  if (options_.place.index > 0) {
    if (const absl::StatusOr<runtime::JobMemory*> memory = home_->Memory(); memory.ok()) {
      SweepPools(**memory);
      if (const absl::StatusOr<StepId> done = (*memory)->DoneByAll(); done.ok())
        import_sweeper_.Sweep(**memory, internal::DecidedByAll(**memory).import, done->step);
    }
  }
  int slot = -1;
  {
    MutexLock lock(engine_mu_);
    if (engine_ == nullptr) slot = slot_;
  }
  if (slot >= 0) RunEngine(slot);
}

void Node::OnCluster(const v1::Cluster& cluster) {
  {
    MutexLock lock(mu_);
    seen_ = cluster;
  }
  if (agent_ != nullptr) agent_->Look(cluster);
  if (host_watch_ != nullptr) host_watch_->Look(cluster);
  for (const v1::Member& m : cluster.members()) {
    if (m.kind() != v1::Member::KIND_SERVER || m.id() != options_.id || m.process().pid() != self_.pid ||
        m.process().start_ticks() != self_.start_ticks) {
      continue;
    }
    if (m.slots().empty() && m.state() == v1::Member::STATE_LEAVING) return End(absl::OkStatus());
    RunEngine(m.slots().empty() ? -1 : m.slots(0));
    return;
  }
}

// Starts the engine of `slot` as soon as the job has memory and the control page names this process; stops
// one of another slot.
void Node::RunEngine(int slot) {
  {
    MutexLock lock(mu_);
    if (stop_ || leaving_) return;
  }
  MutexLock lock(engine_mu_);
  if (engine_ != nullptr && slot != slot_) engine_.reset();
  slot_ = slot;
  if (slot < 0 || engine_ != nullptr) return;
  absl::StatusOr<runtime::JobMemory*> memory = home_->Memory();
  if (!memory.ok()) return;  // the next change of the cluster tells
  if ((*memory)->control().servers[slot].identity() != self_) return;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Start(*memory, Slot(slot), options_.engine);
  if (!engine.ok()) {
    spdlog::error("slot {}: {}", slot, engine.status().ToString());
    return;
  }
  engine_ = *std::move(engine);
  spdlog::info("server {} owns slot {}", options_.id, slot);
}

bool Node::ReadEngine(const std::function<void(const Engine&)>& read) const {
  MutexLock lock(engine_mu_);
  if (engine_ == nullptr) return false;
  read(*engine_);
  return true;
}

absl::Status Node::Leave(absl::Time deadline) {
  {
    MutexLock lock(mu_);
    leaving_ = true;
    if (watching_ != nullptr) watching_->TryCancel();
  }
  {
    MutexLock lock(engine_mu_);
    engine_.reset();
  }
  absl::StatusOr<std::string> address = CoordinatorAddress();
  if (!address.ok()) return address.status();
  grpc::ClientContext context;
  peers_->Prepare(&context, deadline);
  v1::LeaveRequest request;
  request.set_job(options_.job);
  request.set_id(options_.id);
  request.mutable_process()->set_pid(self_.pid);
  request.mutable_process()->set_start_ticks(self_.start_ticks);
  request.set_token(absl::StrCat("leave ", self_.ToString()).substr(0, 64));
  v1::LeaveResponse response;
  const absl::Status left =
      FromGrpc(v1::ClusterService::NewStub(peers_->To(*address))->Leave(&context, request, &response));
  // Whoever watches the cluster here must look elsewhere, and is not waited for.
  if (const std::shared_ptr<Coordinator> c = coordinator(); c != nullptr) c->Stop();
  return left;
}

}  // namespace sherd::server

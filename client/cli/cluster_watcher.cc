#include "client/cli/cluster_watcher.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/rpc/endpoints.h"
#include "runtime/clock.h"

namespace sherd::cli {

ClusterWatcher::ClusterWatcher(std::string job_dir, std::string prefix)
    : job_dir_(std::move(job_dir)),
      prefix_(std::move(prefix)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { Run(); });
}

ClusterWatcher::~ClusterWatcher() {
  {
    runtime::MutexLock lock(mu_);
    stop_ = true;
    if (client_ != nullptr) client_->Cancel();
    changed_.SignalAll();
  }
  thread_.join();
}

std::optional<ClusterWatcher::Seen> ClusterWatcher::Take() {
  eventfd_t ignored;
  ::eventfd_read(wake_.get(), &ignored);
  runtime::MutexLock lock(mu_);
  return std::exchange(seen_, std::nullopt);
}

namespace {

constexpr absl::Duration kPatience = absl::Seconds(2);

}  // namespace

std::vector<ClusterWatcher::Seen::Host> ClusterWatcher::HostsOf(const v1::Cluster& cluster) {
  std::vector<Seen::Host> hosts;
  for (const v1::Host& h : cluster.hosts()) {
    Seen::Host host;
    host.come = !h.name().empty();
    host.ranks = h.ranks();
    // Between two commits a view may show none of its servers: that is no leaving.
    int finished = 0, servers = 0, leaving = 0, lost = 0;
    for (const v1::Member& m : cluster.members()) {
      if (m.host() != h.name()) continue;
      servers += m.kind() == v1::Member::KIND_SERVER;
      leaving += m.kind() == v1::Member::KIND_SERVER && m.state() == v1::Member::STATE_LEAVING;
      lost += m.kind() == v1::Member::KIND_SERVER && m.state() == v1::Member::STATE_LOST;
      finished += m.kind() == v1::Member::KIND_TRAINER && m.state() == v1::Member::STATE_FINISHED;
    }
    host.trainers_finished = finished == h.ranks();
    // One that has signed off may be seen to have ended; while its host trains, one that is lost comes back.
    host.left = leaving > 0 && leaving + (host.trainers_finished ? lost : 0) == servers;
    hosts.push_back(host);
  }
  return hosts;
}

void ClusterWatcher::Run() {
  do {
    FollowOnce();
  } while (Pause(absl::Milliseconds(50)));
}

void ClusterWatcher::FollowOnce() {
  absl::StatusOr<std::vector<std::string>> endpoints = rpc::JobEndpoints(job_dir_);
  if (!endpoints.ok()) return;
  // The coordinator itself, if it is one of them: what another server passes on stops when that one does.
  With(*endpoints, [&](rpc::JobClient& client) {
    const absl::StatusOr<v1::Cluster> cluster = client.GetCluster({}, runtime::SteadyNow() + kPatience);
    if (!cluster.ok()) return;
    const auto at = std::find(endpoints->begin(), endpoints->end(), cluster->coordinator_address());
    if (at != endpoints->end()) std::rotate(endpoints->begin(), at, at + 1);
  });
  With(*endpoints, [&](rpc::JobClient& client) {
    // One try at each; then the sockets may be others.
    for (size_t i = 0; i < endpoints->size(); ++i) {
      const absl::Status status =
          client.WatchCluster({}, runtime::SteadyNow() + absl::Hours(1), [&](v1::Cluster& cluster) {
            Post(cluster);
            return absl::OkStatus();
          });
      if (status.code() != absl::StatusCode::kUnavailable) break;
    }
  });
}

void ClusterWatcher::With(const std::vector<std::string>& endpoints,
                          absl::FunctionRef<void(rpc::JobClient&)> use) {
  rpc::JobClient client(endpoints, {});
  {
    runtime::MutexLock lock(mu_);
    if (stop_) return;
    client_ = &client;
  }
  use(client);
  runtime::MutexLock lock(mu_);
  client_ = nullptr;
}

void ClusterWatcher::Post(const v1::Cluster& cluster) {
  Seen seen;
  seen.desired_servers = cluster.desired_servers();
  seen.world_size = cluster.world_size();
  seen.desired_trainers = cluster.desired_trainers();
  for (const v1::Member& member : cluster.members()) {
    absl::string_view id = member.id();
    int index = 0;
    const bool stalled = member.state() == v1::Member::STATE_STALLED;
    const absl::Duration lasts =
        absl::Seconds(member.stalled_for().seconds()) + absl::Nanoseconds(member.stalled_for().nanos());
    if (member.kind() == v1::Member::KIND_TRAINER) {
      if (stalled) seen.stalled_trainers.emplace_back(member.rank(), lasts);
    } else if (member.state() != v1::Member::STATE_LOST && absl::ConsumePrefix(&id, prefix_) &&
               absl::SimpleAtoi(id, &index)) {
      seen.live_servers.push_back(index);
      if (stalled) seen.stalled_servers.emplace_back(index, lasts);
    }
  }
  seen.hosts = HostsOf(cluster);
  seen.waiting_for = cluster.waiting_for();
  {
    runtime::MutexLock lock(mu_);
    seen_ = std::move(seen);
  }
  ::eventfd_write(wake_.get(), 1);
}

bool ClusterWatcher::Pause(absl::Duration duration) {
  const absl::Time end = runtime::SteadyNow() + duration;
  runtime::MutexLock lock(mu_);
  while (!stop_ && runtime::SteadyNow() < end) changed_.WaitFor(mu_, end - runtime::SteadyNow());
  return !stop_;
}

}  // namespace sherd::cli

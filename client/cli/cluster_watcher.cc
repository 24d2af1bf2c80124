#include "client/cli/cluster_watcher.h"

#include <sys/eventfd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/rpc/endpoints.h"

namespace sherd::cli {

ClusterWatcher::ClusterWatcher(std::string job_dir)
    : job_dir_(std::move(job_dir)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
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

void ClusterWatcher::Run() {
  do {
    FollowOnce();
  } while (Pause(absl::Milliseconds(50)));
}

void ClusterWatcher::FollowOnce() {
  absl::StatusOr<std::vector<std::string>> endpoints = rpc::JobEndpoints(job_dir_);
  if (!endpoints.ok()) return;
  rpc::JobClient client(*endpoints, {});
  {
    runtime::MutexLock lock(mu_);
    if (stop_) return;
    client_ = &client;
  }
  // One try at each; then the sockets may be others.
  for (size_t i = 0; i < endpoints->size(); ++i) {
    const absl::Status status =
        client.WatchCluster({}, absl::Now() + absl::Hours(1), [&](v1::Cluster& cluster) {
          Post(cluster);
          return absl::OkStatus();
        });
    if (status.code() != absl::StatusCode::kUnavailable) break;
  }
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
    if (member.kind() == v1::Member::KIND_SERVER && member.state() != v1::Member::STATE_LOST &&
        absl::ConsumePrefix(&id, "s") && absl::SimpleAtoi(id, &index)) {
      seen.live_servers.push_back(index);
    }
  }
  {
    runtime::MutexLock lock(mu_);
    seen_ = std::move(seen);
  }
  ::eventfd_write(wake_.get(), 1);
}

bool ClusterWatcher::Pause(absl::Duration duration) {
  const absl::Time end = absl::Now() + duration;
  runtime::MutexLock lock(mu_);
  while (!stop_ && absl::Now() < end) changed_.WaitFor(mu_, end - absl::Now());
  return !stop_;
}

}  // namespace sherd::cli

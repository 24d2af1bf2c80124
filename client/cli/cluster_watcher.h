// Follows a job's cluster on a thread, and tells an event loop.
//
//   ClusterWatcher watcher(job_dir);
//   poll(watcher.fd()) ... if (auto seen = watcher.Take()) ...
//
// Goes to whichever server of the job's directory answers, for as long as it takes. Thread-compatible.
#ifndef SHERD_CLIENT_CLI_CLUSTER_WATCHER_H_
#define SHERD_CLIENT_CLI_CLUSTER_WATCHER_H_

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "client/rpc/job_client.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

class ClusterWatcher {
 public:
  struct Seen {
    std::vector<int> live_servers;  // n of those called "<prefix><n>"
    int desired_servers = 0;
    int world_size = 0, desired_trainers = 0;  // ranks there are, and as asked for; 0: none yet
    // Who lives but does not move while others wait, and for how long: ranks, and numbers of servers as
    // above.
    std::vector<std::pair<int, absl::Duration>> stalled_trainers, stalled_servers;
    // Of a job of several hosts, by index; else empty. All are known once all have come.
    struct Host {
      bool come = false;
      int ranks = 0;
      bool left = false;               // its servers have signed off
      bool trainers_finished = false;  // all of its ranks
    };
    std::vector<Host> hosts;
    std::string waiting_for;
  };

  // `prefix`: of the ids of the servers that are reported.
  ClusterWatcher(std::string job_dir, std::string prefix);
  ~ClusterWatcher();
  ClusterWatcher(const ClusterWatcher&) = delete;
  ClusterWatcher& operator=(const ClusterWatcher&) = delete;

  static std::vector<Seen::Host> HostsOf(const v1::Cluster& cluster);

  // Polls readable when Take() has something.
  int fd() const { return wake_.get(); }
  // The newest that was not taken yet.
  std::optional<Seen> Take();

 private:
  void Run();
  // Follows the sockets that are there now.
  void FollowOnce();
  // Calls `use` with a client that the destructor can cancel.
  void With(const std::vector<std::string>& endpoints, absl::FunctionRef<void(rpc::JobClient&)> use);
  void Post(const v1::Cluster& cluster);
  bool Pause(absl::Duration duration);

  const std::string job_dir_, prefix_;
  const runtime::UniqueFd wake_;
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  rpc::JobClient* client_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::optional<Seen> seen_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_CLUSTER_WATCHER_H_

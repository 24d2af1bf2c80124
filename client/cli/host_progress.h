// What `sherd run` makes of the hosts that a cluster shows: when all have come, when one is lost, when the
// servers of this one may end.
//
//   HostProgress progress(/*index=*/1);                  // of this host
//   HostProgress::News news = progress.See(seen.hosts, seen.waiting_for);
//   if (!news.ranks.empty()) ...                         // all have come: start the trainers
//
// A value. Thread-compatible.
#ifndef SHERD_CLIENT_CLI_HOST_PROGRESS_H_
#define SHERD_CLIENT_CLI_HOST_PROGRESS_H_

#include <string>
#include <vector>

#include "client/cli/cluster_watcher.h"

namespace sherd::cli {

class HostProgress {
 public:
  struct News {
    std::string say;                // for people; empty: nothing new
    std::vector<int> ranks;         // of each host, once: as all have come
    std::vector<std::string> lost;  // a line for each host that left before its trainers ended
    bool all_finished = false;      // the trainers of all hosts
    bool may_end_servers = false;   // nobody needs those of this host any more
  };

  explicit HostProgress(int index) : index_(index) {}

  News See(const std::vector<ClusterWatcher::Seen::Host>& hosts, const std::string& waiting_for);
  bool all_came() const { return all_came_; }

 private:
  const int index_;
  bool all_came_ = false;
  std::string told_;  // what was waited for, as last said
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_HOST_PROGRESS_H_

#include "client/cli/host_progress.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sherd::cli {

HostProgress::News HostProgress::See(const std::vector<ClusterWatcher::Seen::Host>& hosts,
                                     const std::string& waiting_for) {
  News news;
  if (!all_came_) {
    if (waiting_for != told_) news.say = waiting_for;
    told_ = waiting_for;
    std::vector<int> ranks;
    for (const ClusterWatcher::Seen::Host& host : hosts) {
      if (host.come) ranks.push_back(host.ranks);
    }
    all_came_ = !ranks.empty() && ranks.size() == hosts.size();
    if (all_came_) news.ranks = std::move(ranks);
    return news;
  }
  bool finished = true, others = false;
  for (size_t h = 0; h < hosts.size(); ++h) {
    finished &= hosts[h].trainers_finished;
    if (static_cast<int>(h) == index_) continue;
    others |= !hosts[h].left;
    if (hosts[h].left && !hosts[h].trainers_finished) {
      news.lost.push_back(absl::StrCat("host ", h, " has left; the job ends"));
    }
  }
  // The first host's coordinator serves the others until they have signed off.
  news.all_finished = finished;
  news.may_end_servers = finished && (index_ > 0 || !others);
  return news;
}

}  // namespace sherd::cli

// Sees the members of a job that are processes of this host, for a coordinator that is on another one:
// reports their exits to it, and ends those that must be dead before a successor takes their place.
//
//   HostWatch watch({"gpt", "host-1"}, &exit_watch, [&](request) { return RPC MemberExited; });
//   watch.Look(cluster);                   // after each change
//
// Every server of a joined host does so: reports may be repeated. Thread-safe; Look does not block.
#ifndef SHERD_SERVER_HOST_WATCH_H_
#define SHERD_SERVER_HOST_WATCH_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "runtime/exit_watch.h"
#include "runtime/mutex.h"
#include "runtime/process_identity.h"

namespace sherd::server {

class HostWatch {
 public:
  // Tells the coordinator that a process of this host has ended; what is not OK is tried again.
  using Report = std::function<absl::Status(const runtime::ProcessIdentity&)>;

  // `watch` is borrowed. `host`: as members of this host have it in Member.host.
  HostWatch(std::string host, runtime::ExitWatch* watch, Report report);
  // Waits for a report in hand.
  ~HostWatch();

  // The job as the coordinator sees it.
  void Look(const v1::Cluster& cluster);
  // Whether the coordinator knows of every exit that was seen.
  bool told_all() const;

 private:
  using Key = std::pair<int32_t, uint64_t>;
  void Ended(const runtime::ProcessIdentity& process);
  void Run();

  const std::string host_;
  runtime::ExitWatch* const watch_;
  const Report report_;
  mutable runtime::Mutex mu_;
  runtime::CondVar changed_;
  std::map<Key, runtime::ExitWatch::Id> watched_ ABSL_GUARDED_BY(mu_);
  std::deque<runtime::ProcessIdentity> ended_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_WATCH_H_

// What connects this host of a job with the others: mirrors of their ranks' and slots' records, the exchange
// of partial sums, and parameters (DESIGN.md, several hosts).
//
//   HostAgent agent(options, &home);
//   agent.Look(cluster);                    // after each change: where the others' data ports are
//
// Every server of a host has one; the one that holds the lock in the job's directory acts, from when the job
// has memory and its part of what it begins with (server/host_begin.h). If its process dies another takes the
// lock, connects anew and says everything again.
//
// Thread-safe. The destructor waits for a report in hand.
#ifndef SHERD_SERVER_HOST_AGENT_H_
#define SHERD_SERVER_HOST_AGENT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/optional.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "runtime/host_place.h"
#include "runtime/link_listener.h"
#include "runtime/mutex.h"
#include "runtime/net_address.h"
#include "runtime/secret_file.h"
#include "server/host_peer.h"
#include "server/job_home.h"

namespace sherd::server {

class HostAgent {
 public:
  struct Options {
    runtime::HostPlace place;
    absl::optional<runtime::Secret> secret;  // must be there
    runtime::SocketAddress listen;           // of the data port, as others reach it; port 0: any
    bool allow_remote = false;
    runtime::SpinPolicy spin = runtime::SpinPolicy::None();
    // Called about twenty times a second. May be empty.
    std::function<void()> tick;
    // Tells the coordinator how this host is; what is not OK is tried again.
    std::function<absl::Status(v1::ReportHostRequest)> report;
  };

  // `home` is borrowed.
  HostAgent(Options options, JobHome* home);
  ~HostAgent();

  // The job as the coordinator sees it.
  void Look(const v1::Cluster& cluster);

 private:
  void Run();
  void Act(runtime::JobMemory* memory);
  absl::StatusOr<std::unique_ptr<runtime::LinkListener>> Listen(runtime::LinkAdmission* admission);
  void ReportAll();
  std::string AddressOf(int host) const;
  bool Pause(absl::Duration duration);

  const Options options_;
  JobHome* const home_;

  mutable runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::map<int, std::string> addresses_ ABSL_GUARDED_BY(mu_);
  std::string data_address_ ABSL_GUARDED_BY(mu_);
  uint64_t step_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t gathered_peak_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int, std::unique_ptr<HostPeer>> peers_ ABSL_GUARDED_BY(mu_);
  std::thread run_, report_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_AGENT_H_

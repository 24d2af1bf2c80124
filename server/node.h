// This server process's part in its job: stands for coordinator, joins whoever is it, and owns the slot it is
// given.
//
// The coordinator is whoever leads in the store. A leader whose lease has ended (etcd) may not know it yet,
// being stopped; so that two never work on one memory, a coordinator also holds a lock of the job's
// directory.
//
//   auto node = Node::Start(options, &home, &peers, &exit_watch);   // the services listen at options.address
//   absl::Status end = (*node)->Wait(deadline);                     // retired, or a reason to give up
//   (*node)->Leave(deadline);
//
// Thread-safe.
#ifndef SHERD_SERVER_NODE_H_
#define SHERD_SERVER_NODE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "grpcpp/channel.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "runtime/exit_watch.h"
#include "runtime/host_place.h"
#include "runtime/meta_store.h"
#include "runtime/mutex.h"
#include "runtime/process_identity.h"
#include "server/coordinator.h"
#include "server/engine.h"
#include "server/host_agent.h"
#include "server/host_watch.h"
#include "server/import_sweeper.h"
#include "server/job_home.h"
#include "server/other_hosts.h"
#include "server/peers.h"

namespace grpc {
class ClientContext;
}

namespace sherd::server {

class Node {
 public:
  struct Options {
    std::string job;
    std::string id;
    std::string address;                                 // where other servers call this one
    int expected_servers = 1;                            // that form the first epoch
    int min_trainers = 1, max_trainers = kMaxWorldSize;  // that a resize may ask for
    // In a job of several hosts: which this is, 0 being the coordinator's, and how many.
    runtime::HostPlace place;
    v1::HostShare share;                       // what this host brings, if there are several
    std::string rpc_address;                   // where servers of other hosts call this one, if there are
    absl::optional<HostAgent::Options> agent;  // if there are several; `tick` and `report` are the node's
    EngineOptions engine;
  };

  // `home`, `peers` and `watch` are borrowed.
  static absl::StatusOr<std::unique_ptr<Node>> Start(Options options, JobHome* home, Peers* peers,
                                                     runtime::ExitWatch* watch);
  // Stops the engine and the candidacy, at once.
  ~Node();

  const Options& options() const { return options_; }
  JobHome& home() const { return *home_; }
  Peers& peers() const { return *peers_; }
  // The other hosts of the job; null if there are none.
  const OtherHosts* others() const { return others_.get(); }
  // Whether the coordinator has this server as a member, and knows who died on this host: before that whoever
  // stood in a place here still does.
  bool settled() const;
  // Why it has ended; OK: it has not, or as it should.
  absl::Status why_ended() const;
  // Its end has begun: whatever takes long stops.
  bool stopping() const;

  // The coordinator, if it lives here; null otherwise.
  std::shared_ptr<Coordinator> coordinator() const;
  // The address of the coordinator elsewhere. UNAVAILABLE: there is none at the moment, or the store cannot
  // be asked.
  absl::StatusOr<std::string> CoordinatorAddress() const;
  // The job as this server last saw it, at its step now, when the coordinator cannot be asked: the store is
  // away and no coordinator with it, or the link to the coordinator's host is not up. nullopt otherwise.
  std::optional<v1::Cluster> ViewWithoutCoordinator() const;
  // The same when it was asked, and `why` there is no answer. Nullopt on the coordinator's own host where
  // none could be reached: who leads there may just be changing.
  std::optional<v1::Cluster> ViewUnanswered(const absl::Status& why) const;

  // OK: this server was retired and may exit. Otherwise why it cannot be a member. Waits at most until
  // `deadline` (DEADLINE_EXCEEDED), so that a caller can look at its signals.
  absl::Status Wait(absl::Time deadline);

  // Signs off: the slot is free for another server. Stops the engine first.
  absl::Status Leave(absl::Time deadline);

  // The slot's engine does work for this server; for metrics. False: it holds no slot.
  bool ReadEngine(const std::function<void(const Engine&)>& read) const;

 private:
  Node(Options options, JobHome* home, Peers* peers, runtime::ExitWatch* watch);
  // What becomes of leading: a thread starts a coordinator when this server may be it, and ends it.
  void Steer();
  void StartCoordinator();
  void StepDown();
  void Follow();
  absl::Status FollowOnce();
  std::optional<v1::Cluster> OwnView(std::string waits_for) const;
  // Where a server of that host answers, as far as this one has seen; empty: not known.
  std::string HostAddress(int host) const;
  absl::Status ReportExit(const runtime::ProcessIdentity& process);
  absl::Status ReportHost(v1::ReportHostRequest report);
  void OnCluster(const v1::Cluster& cluster);
  void RunEngine(int slot);
  // About twenty times a second in a job of several hosts. On another host than the coordinator's the control
  // page follows a moment after the cluster's change, and nobody else sweeps up snapshots.
  void Tick();
  void End(absl::Status why);

  const Options options_;
  JobHome* const home_;
  Peers* const peers_;
  runtime::ExitWatch* const watch_;
  const runtime::ProcessIdentity self_;
  const std::unique_ptr<OtherHosts> others_;

  mutable runtime::Mutex mu_;
  mutable runtime::CondVar changed_;
  bool leads_ ABSL_GUARDED_BY(mu_) = false;         // by the store
  bool deposed_ ABSL_GUARDED_BY(mu_) = false;       // it led, and what it began then has not ended yet
  bool holds_memory_ ABSL_GUARDED_BY(mu_) = false;  // and no coordinator before it lives on this host
  std::shared_ptr<Coordinator> coordinator_ ABSL_GUARDED_BY(mu_);
  v1::Cluster seen_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status why_ended_ ABSL_GUARDED_BY(mu_);
  bool leaving_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* watching_ ABSL_GUARDED_BY(mu_) = nullptr;  // to be cancelled at the end

  mutable runtime::Mutex engine_mu_;
  std::unique_ptr<Engine> engine_ ABSL_GUARDED_BY(engine_mu_);
  int slot_ ABSL_GUARDED_BY(engine_mu_) = -1;

  ImportSweeper import_sweeper_;           // on another host than the coordinator's; the ticking thread's
  std::unique_ptr<HostWatch> host_watch_;  // on another host than the coordinator's
  std::unique_ptr<HostAgent> agent_;       // in a job of several hosts
  std::unique_ptr<runtime::MetaStore::Leadership> leadership_;
  std::unique_ptr<runtime::MetaStore::Leadership> memory_;  // the steering thread's
  std::thread steer_, follow_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_NODE_H_

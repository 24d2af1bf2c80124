// The hands of core/membership.h: takes events from services and from the exits of processes, carries out
// what follows from them, and keeps the control page as the newest epoch document says. Lives in the one
// server that leads the job (MetaStore::Elect); another one starts its own from the store when that process
// dies.
//
//   auto c = Coordinator::Start(options, &home, &exit_watch);
//   absl::Status joined = (*c)->Join(id, address, process, deadline);
//   absl::StatusOr<Attached> place = (*c)->Attach(rank, process, spec, token, deadline);
//
// Calls block until answered: DEADLINE_EXCEEDED says what is waited for, UNAVAILABLE that this coordinator
// stops. Thread-safe. No lock is held while anything slow happens.
#ifndef SHERD_SERVER_COORDINATOR_H_
#define SHERD_SERVER_COORDINATOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "runtime/exit_watch.h"
#include "runtime/mutex.h"
#include "server/import_sweeper.h"
#include "server/job_home.h"
#include "server/snapshots.h"
#include "server/stall_watch.h"

namespace sherd::server {

class Coordinator {
 public:
  struct Options {
    std::string job;
    int expected_servers = 1;  // that form the first epoch
    std::string server_id;     // of the server this coordinator lives in, and its address
    std::string address;
    int min_trainers = 1, max_trainers = kMaxWorldSize;  // that a resize may ask for
    std::string host;  // that it is a process of, as members of the job name it; empty: this host's own name
    int hosts = 1;     // of the job
    runtime::MetaStore* store = nullptr;  // as the leadership it acts under may change it; borrowed
    const OtherHosts* others = nullptr;   // of the job, if there are any; borrowed
  };

  // What a trainer learns when it has its place.
  struct Attached {
    Epoch epoch;
    Incarnation incarnation;
    Step step;
    bool initialized = false;
    bool must_initialise = false;
    int servers = 0;
    JobSpec spec;  // as the first trainer fixed it; its world size and samples may differ from this one's
  };

  struct Resized {
    absl::Duration pause;
    absl::Duration duration;
    int64_t changed_elements = 0;
    Epoch epoch;
    Step step;
  };

  // Restores the job from the newest document, or begins one. `home` and `watch` are borrowed.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(Options options, JobHome* home,
                                                            runtime::ExitWatch* watch);
  ~Coordinator();
  // Answers all callers, now and from now on, with UNAVAILABLE: streams end at once. Thread-safe.
  void Stop();
  // Whether that has happened: long operations of this coordinator look at it.
  bool stopped() const;
  // Stops, and returns when nothing is carried out any more. Called once; as destruction does.
  void End();

  // The store as this coordinator may change it: ABORTED once it leads no longer.
  runtime::MetaStore& store() const { return *options_.store; }

  // `host`, here and in Attach: that the process is one of; empty: this one.
  // `share`: what the host brings to a job of several; else unset.
  absl::Status Join(const std::string& id, const std::string& address, const std::string& host,
                    const v1::HostShare& share, const ProcessIdentity& process, absl::Time deadline);
  absl::Status Leave(const std::string& id, const ProcessIdentity& process, const std::string& token,
                     absl::Time deadline);
  // A server of another host, at this address, saw the exit of this process there.
  //   FAILED_PRECONDITION  the host is at another address
  absl::Status MemberExited(const std::string& host, const std::string& address,
                            const ProcessIdentity& process);
  // How a host says its links are; shown in View. INVALID_ARGUMENT: an index that is no host's.
  absl::Status ReportHost(const v1::ReportHostRequest& report);
  // NOT_FOUND unless it is a member.
  absl::Status Heartbeat(const std::string& id, const ProcessIdentity& process);

  // ShardService::Attach. Makes the job's memory if it is the first.
  absl::StatusOr<Attached> Attach(Rank rank, const std::string& host, const ProcessIdentity& process,
                                  const JobSpec& spec, const std::string& token, absl::Time deadline);
  absl::Status CommitInitial(Rank rank, Incarnation incarnation);
  absl::Status Detach(Rank rank, Incarnation incarnation, bool finished, const std::string& token,
                      absl::Time deadline);

  // `epoch` 0: whichever. `progress` is told, from the calling thread, what is waited for whenever that
  // changes; false gives up.
  using Progress = std::function<bool(const std::string&)>;
  absl::StatusOr<Resized> Resize(int servers, Epoch epoch, const std::string& token, absl::Time deadline,
                                 const Progress& progress);
  // `from_step`: not before that one; 0: as soon as can be. `give_up_step`: without waiting for the step in
  // hand.
  absl::StatusOr<Resized> ResizeTrainers(int trainers, Step from_step, bool give_up_step, Epoch epoch,
                                         const std::string& token, absl::Time deadline,
                                         const Progress& progress);
  absl::StatusOr<Resized> Drain(const std::string& id, Epoch epoch, const std::string& token,
                                absl::Time deadline, const Progress& progress);

  // Stores an import at the next step boundary. The whole of it stands in the segments, one on each host,
  // that `name_it` puts under the id it is given, for this generation (server/import_names.h). Returns a step
  // by which it is stored everywhere. A token that was seen before is not stored again.
  using NameImport = std::function<absl::Status(uint64_t id, uint64_t generation)>;
  absl::StatusOr<Step> StoreImport(const std::string& token, const NameImport& name_it, absl::Time deadline);

  Snapshots& snapshots() { return snapshots_; }

  // True while a trainer has a place that it has not given up: then boundaries are left to verdicts.
  bool TrainersAttached() const;

  v1::Cluster View() const;
  // Who lives and does not move, for metrics.
  std::vector<StallWatch::Stalled> stalled() const;
  // The view once its version is not `after`; UNAVAILABLE, DEADLINE_EXCEEDED.
  absl::StatusOr<v1::Cluster> WaitForChange(uint64_t after, absl::Time deadline) const;

  // Not OK once another coordinator was found to have committed: this one must go.
  absl::Status status() const;

 private:
  struct Call {
    bool done = false;
    absl::Status status;
  };

  Coordinator(Options options, JobHome* home, runtime::ExitWatch* watch, MembershipState state);

  void Post(Event event);
  absl::Status PostAndWait(Event event, const std::string& request, absl::Time deadline,
                           const Progress& progress = nullptr);
  absl::StatusOr<Resized> Operate(Event event, Epoch epoch, const std::string& token, absl::Time deadline,
                                  const Progress& progress);

  // The thread that carries out effects, one event after another.
  void Run();
  void Handle(const Event& event);
  void Do(const CommitEpoch& effect);
  absl::Status Commit(const EpochDoc& doc);
  void Do(const MustBeDead& effect);
  void Do(const ProposeAssignment& effect);
  void Do(const RetireServer& effect);
  void Do(const Answer& effect);
  void NoteDeath(const Event& event);
  void FollowMembers();
  // On another host its own servers watch and kill (server/host_watch.h).
  void WatchProcess(const std::string& host, const ProcessIdentity& process, Event when_dead);
  void ApplyToMemory();

  // The thread that looks at the control page.
  void Monitor();
  void Look();
  void LookAtProposals(runtime::JobMemory& memory);
  // Who lives and does not move.
  void LookForStalled(runtime::JobMemory& memory, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Tells membership which of the trainers that join have said that they are ready.
  void LookForReady(runtime::JobMemory& memory) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Makes room for `rank` if a resize asks for it, and takes what a resized job leaves open from `job`.
  absl::Status PreparePlace(Rank rank, JobSpec* asked) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status CheckHolder(runtime::JobMemory& memory, Rank rank, const std::string& host,
                           const ProcessIdentity& process) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<Step> AwaitImport(runtime::JobMemory& memory, uint64_t id, absl::Time deadline);

  // Whether the host is now at another address than this one: it was lost, and followed.
  bool HasMoved(const std::string& host, const std::string& address) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // ALREADY_EXISTS: it may not move there, as it is where it is.
  absl::Status CheckMoves(const std::string& host, const std::string& address) const ABSL_LOCKS_EXCLUDED(mu_);
  runtime::JobMemory* memory() const;
  std::string HostOr(const std::string& host) const { return host.empty() ? host_ : host; }
  void AddHosts(v1::Cluster* out) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Changed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddServer(const ServerMember& member, int slot, v1::Member::State state, v1::Cluster* out) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddTrainer(int rank, v1::Cluster* out) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string WaitsFor() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // "rank 1 (host a, process 7.3)", and what of it others wait for.
  std::string ShowPlace(const StallWatch::Stalled& s) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string ShowStalled(const StallWatch::Stalled& s) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::Cluster ViewLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  JobHome* const home_;
  runtime::ExitWatch* const watch_;
  const std::string host_;

  mutable runtime::Mutex mu_;
  mutable runtime::CondVar changed_;
  MembershipState state_ ABSL_GUARDED_BY(mu_);
  EpochDoc committed_ ABSL_GUARDED_BY(mu_);  // the newest that is in the store
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::vector<std::shared_ptr<Call>>> calls_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, ProcessIdentity> retired_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<int64_t, uint64_t>, runtime::ExitWatch::Id> watched_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<std::string, std::pair<int64_t, uint64_t>>> doomed_ ABSL_GUARDED_BY(mu_);  // elsewhere
  std::map<int, v1::ReportHostRequest> hosts_ ABSL_GUARDED_BY(mu_);  // by index, as last reported
  runtime::JobMemory* memory_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::deque<std::pair<std::string, uint64_t>> imports_ ABSL_GUARDED_BY(mu_);  // the latest, by token
  bool naming_import_ ABSL_GUARDED_BY(mu_) = false;  // StoreImport is about to propose one
  int attaching_ ABSL_GUARDED_BY(mu_) =
      0;  // Attach calls that wait for a boundary: no other one may be opened
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 1;
  std::string described_ ABSL_GUARDED_BY(mu_);  // as last reported
  std::string commit_waits_
      ABSL_GUARDED_BY(mu_);  // why the store does not take the newest document; else empty
  std::vector<StallWatch::Stalled> stalled_ ABSL_GUARDED_BY(mu_);
  uint64_t applied_posted_ ABSL_GUARDED_BY(mu_) = 0;  // assignment last told to membership
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;

  StallWatch stall_watch_ ABSL_GUARDED_BY(mu_);
  ImportSweeper import_sweeper_ ABSL_GUARDED_BY(mu_);
  absl::Time stall_looked_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  Snapshots snapshots_;  // thread-safe itself
  std::thread run_, monitor_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_COORDINATOR_H_

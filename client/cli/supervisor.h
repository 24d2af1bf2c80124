// What `sherd run` decides: whom to start, start again and end, and with which status to exit. Pure: events
// and the time come in, actions go out; run_command.h does them.
//
//   Supervisor supervisor(options);
//   Do(supervisor.Start(now));
//   ...
//   Do(supervisor.Exited({Member::kTrainer, 1}, status, now));   // e.g. kSay "...", later kSpawn {kTrainer,
//   1} Do(supervisor.Tick(now));                                    // at supervisor.next_tick() if
//   (supervisor.done()) return supervisor.exit_status();
//
// The rules.
// - Servers first; trainers once all servers were seen in the cluster.
// - Killed by a signal: started again, `restarts` times each, after a wait that doubles. A server that fails
// by
//   itself is started again too, once it was up. A trainer that fails by itself ends the job with its status.
// - Out of restarts: the job ends, with 128 + signal for a trainer, 1 for a server.
// - A server that exits with 0 was retired by a resize. When the cluster asks for more servers than there
// are,
//   more are started.
// - When the cluster asks for more trainers than there are ranks, they are started; one that a resize lets go
//   is not started again, however it ended, and one that was to join and fails by itself ends nothing.
// - Out of restarts with `min_trainers`: the job goes on with one rank less, as long as there are so many.
// The
//   trainer of the last rank is let go then, and the lost rank, if it was another, begins anew in its stead.
// - One that lives but has not moved for `stall_timeout` while others wait for it, or does not answer for as
// long,
//   is killed, and then like any that was.
// - In a job of several hosts trainers wait for all of them to have come; servers stay when the own trainers
//   have finished until MayEndServers, as others may need them; and HostLost ends the job.
// - The end: SIGTERM to the trainers, SIGKILL after a grace; then the same to the servers. At the first
//   Ctrl-C too, with status 128 + signal; at the second, SIGKILL to all.
//
// Thread-compatible.
#ifndef SHERD_CLIENT_CLI_SUPERVISOR_H_
#define SHERD_CLIENT_CLI_SUPERVISOR_H_

#include <ostream>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/child_process.h"

namespace sherd::cli {

struct Member {
  enum Kind { kTrainer, kServer };
  Kind kind = kTrainer;
  int index = 0;  // rank, or number of the server

  friend bool operator==(const Member& a, const Member& b) { return a.kind == b.kind && a.index == b.index; }
  friend bool operator<(const Member& a, const Member& b) {
    return a.kind != b.kind ? a.kind < b.kind : a.index < b.index;
  }
  // "trainer 1", "server s1".
  std::string ToString() const;
};

struct Action {
  enum Kind {
    kSpawn,    // start `member`
    kSignal,   // send `signal` to `member`, which runs
    kSay,      // tell the user `text`
    kShowLog,  // show the end of the log of `member`, a server
    kResize,   // ask the job to go on with `trainers` ranks, without the step in hand; ResizeFailed if not
  };
  Kind kind = kSay;
  Member member;
  int signal = 0;
  std::string text;
  int trainers = 0;

  // "spawn trainer 1", "signal 15 trainer 1", "say ...", "log server s1": for transcripts.
  std::string ToString() const;
  friend std::ostream& operator<<(std::ostream& os, const Action& a) { return os << a.ToString(); }
};
using Actions = std::vector<Action>;

class Supervisor {
 public:
  struct Options {
    int trainers = 1;
    int servers = 1;
    int restarts = 3;
    int min_trainers = 0;  // 0: a trainer that is out of restarts ends the job
    absl::Duration first_wait = absl::Milliseconds(100);
    absl::Duration longest_wait = absl::Seconds(5);
    absl::Duration start_limit = absl::Seconds(60);  // for the servers to answer
    absl::Duration trainer_grace = absl::Seconds(5);
    absl::Duration server_grace = absl::Seconds(10);
    absl::Duration stall_timeout = absl::InfiniteDuration();
    bool several_hosts = false;
    // For the others to finish too: what rank 0 does at the end, in stage 3, needs the parameters here.
    absl::Duration hosts_grace = absl::Hours(1);
    absl::Duration leave_grace = absl::Minutes(1);  // once all have, for them to sign off
  };

  // REQUIRES: at least one trainer and one server, restarts >= 0.
  explicit Supervisor(const Options& options);

  Actions Start(absl::Time now);

  // `member` ended (and was reaped).
  Actions Exited(Member member, const runtime::ExitStatus& status, absl::Time now);
  // `member` could not be started: the job ends.
  Actions SpawnFailed(Member member, const std::string& why, absl::Time now);
  // The cluster as its coordinator sees it: numbers of the servers that live, and how many are asked for.
  Actions ClusterSeen(const std::vector<int>& live_servers, int desired_servers, absl::Time now);
  // How many ranks there are, and how many are asked for.
  Actions TrainersSeen(int world_size, int desired, absl::Time now);
  // `member` lives but has not moved (a server: or not answered) for so long.
  Actions Stalled(Member member, absl::Duration lasts, absl::Time now);
  // What kResize asked for was refused.
  Actions ResizeFailed(const std::string& why, absl::Time now);
  // Ranks there are or are to be: what a trainer is told when it is started.
  int world_size() const;
  // Of several hosts: nobody needs this one's servers any more.
  Actions MayEndServers(absl::Time now);
  // Of several hosts: the trainers of all have finished.
  void AllFinished(absl::Time now);
  // Of several hosts: one has gone before its trainers had finished.
  Actions HostLost(const std::string& why, absl::Time now);
  // SIGINT, SIGTERM or SIGHUP came.
  Actions Interrupted(int signal, absl::Time now);
  // To be called at next_tick(); harmless at other times.
  Actions Tick(absl::Time now);

  // InfiniteFuture when there is nothing to wait for but events.
  absl::Time next_tick() const;

  // Nobody runs and nobody will. Then exit_status() is that of `sherd run`.
  bool done() const { return phase_ == Phase::kDone; }
  int exit_status() const { return exit_status_; }

 private:
  enum class Phase { kStartingServers, kRunning, kEndingTrainers, kWaitingForHosts, kEndingServers, kDone };
  enum class State { kRunning, kWaiting, kEnded };  // kWaiting: to be started again at `start_at`
  struct Process {
    State state = State::kEnded;
    bool up = false;  // a server: was seen in the cluster
    int restarts = 0;
    bool gave_up = false;  // a trainer: failed too often
    bool killed = false;   // for standing still
    absl::Time start_at;
  };

  Process& process(Member member);
  std::vector<Process>& all(Member::Kind kind) { return kind == Member::kTrainer ? trainers_ : servers_; }
  bool AnyLeft(const std::vector<Process>& processes) const;
  int ServersLeft() const;
  bool Ending() const { return phase_ != Phase::kStartingServers && phase_ != Phase::kRunning; }

  void Spawn(Member member, Actions* actions);
  void TrainerExited(int rank, const runtime::ExitStatus& status, absl::Time now, Actions* actions);
  void ServerExited(int index, const runtime::ExitStatus& status, absl::Time now, Actions* actions);
  // Goes on without `rank`, which is out of restarts. False: there are too few others.
  bool GoOnWithout(int rank, const std::string& how, Actions* actions);
  // False when `member` has no restarts left.
  bool Restart(Member member, const std::string& how, absl::Time now, Actions* actions);
  void Fail(int exit_status, const std::string& why, absl::Time now, Actions* actions);
  // Ends whoever is to be ended next, or finishes.
  void Wind(absl::Time now, Actions* actions);
  void SignalAll(Member::Kind kind, int signal, Actions* actions);

  const Options options_;
  Phase phase_ = Phase::kStartingServers;
  std::vector<Process> trainers_;
  std::vector<Process> servers_;
  int desired_servers_ = 0;
  int world_size_ = 0, desired_trainers_ = 0;
  bool all_finished_ = false;
  absl::Time limit_ = absl::InfiniteFuture();  // of the phase: give up starting, or kill
  bool interrupted_ = false, hold_servers_ = false;
  int exit_status_ = 0;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_SUPERVISOR_H_

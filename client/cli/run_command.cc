#include "client/cli/run_command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/cluster_watcher.h"
#include "client/cli/host_progress.h"
#include "client/cli/job_environment.h"
#include "client/cli/keeper.h"
#include "client/cli/output_pump.h"
#include "client/cli/resize_caller.h"
#include "client/cli/server_log.h"
#include "client/cli/silence_watch.h"
#include "client/cli/supervisor.h"
#include "client/config/deepspeed_config.h"
#include "client/rpc/endpoints.h"
#include "runtime/child_process.h"
#include "runtime/clock.h"
#include "runtime/doorbell.h"
#include "runtime/etcd/job_store.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/job_dir.h"
#include "runtime/secret_file.h"

namespace sherd::cli {
namespace {

using runtime::ChildProcess;
using runtime::JobDir;

void Say(absl::string_view text) { WriteAll(STDERR_FILENO, absl::StrCat("sherd run: ", text, "\n")); }

absl::Status MakeDirectory(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST) return absl::OkStatus();
  return formats::FileError(errno, "create the directory", path);
}

class Run {
 public:
  explicit Run(const RunOptions& options) : options_(options) {}

  // Everything up to the first process. After an error nothing is there.
  absl::Status Prepare();
  // The job, from Start() to done().
  void Loop();
  // Leaves nothing.
  void CleanUp();
  int exit_status() const { return supervisor_->exit_status(); }

 private:
  std::string SocketPath(int server) const {
    return absl::StrCat(dir_->path(), "/", hosts_.ServerPrefix(), server, rpc::kSocketSuffix);
  }
  absl::Status ReadConfig();
  absl::Status PrepareHosts();
  absl::Status PrepareLogs();
  absl::Status MaskSignals();
  absl::Status OpenStore();

  void SeeCluster(const ClusterWatcher::Seen& seen);
  void SeeStalled(Member::Kind kind, int first, const std::vector<std::pair<int, absl::Duration>>& stalled);
  void Do(const Actions& actions);
  void Spawn(Member member);
  absl::StatusOr<ChildProcess> SpawnTrainer(int rank);
  absl::StatusOr<ChildProcess> SpawnServer(int index);
  void ShowLog(int server);
  void Reap();

  const RunOptions options_;
  std::string server_program_;
  TrainerPlace place_;  // of this host's first rank
  HostPlan hosts_;
  std::optional<HostProgress> progress_;  // empty: one host
  std::optional<Keeper> keeper_;
  std::optional<JobDir> dir_;
  std::unique_ptr<runtime::MetaStore> store_;  // null: in dir_
  runtime::UniqueFd signals_;
  std::unique_ptr<OutputPump> trainer_output_;  // may wait for a terminal
  std::unique_ptr<OutputPump> server_output_;   // must not
  std::map<int, std::unique_ptr<ServerLog>> logs_;
  std::unique_ptr<ClusterWatcher> watcher_;
  std::unique_ptr<ResizeCaller> resizer_;
  std::unique_ptr<SilenceWatch> silence_;  // null: nobody is killed for standing still
  std::map<Member, ChildProcess> children_;
  std::optional<Supervisor> supervisor_;
};

// Before anything is started or made. Says what is done otherwise than the file asks.
absl::Status Run::ReadConfig() {
  if (options_.config.empty()) return absl::OkStatus();
  absl::StatusOr<DeepSpeedConfig> config = DeepSpeedConfig::Load(options_.config);
  if (!config.ok()) return config.status();
  // How many ranks other hosts have is not known yet.
  if (!options_.hosts.any()) {
    if (absl::Status ok = config->CheckWorld(options_.trainers); !ok.ok()) return ok;
  }
  const std::unique_ptr<char, decltype(&::free)> absolute(::realpath(options_.config.c_str(), nullptr),
                                                          &::free);
  if (absolute == nullptr) return formats::FileError(errno, "find", options_.config);
  place_.config = absolute.get();
  for (const std::string& line : config->warnings()) Say(line);
  return absl::OkStatus();
}

absl::Status Run::PrepareHosts() {
  absl::StatusOr<HostPlan> plan = PlanHosts(options_.hosts, ::getenv);
  if (!plan.ok()) return plan.status();
  hosts_ = *std::move(plan);
  if (hosts_.place.several()) progress_.emplace(hosts_.place.index);
  absl::Status groups = CheckReduceGroups(options_.reduce_groups, options_.trainers, hosts_.place.several());
  if (groups.ok()) groups = CheckReplicas(options_.replicas, hosts_.place.several());
  if (!groups.ok()) return groups;
  place_.reduce_groups = options_.reduce_groups;
  place_.replicas = options_.replicas;
  return absl::OkStatus();
}

absl::Status Run::Prepare() {
  if (absl::Status status = ReadConfig(); !status.ok()) return status;
  if (absl::Status status = PrepareHosts(); !status.ok()) return status;
  const char* path = ::getenv("PATH");
  const std::string search = path == nullptr ? "/usr/local/bin:/usr/bin:/bin" : path;
  if (absl::StatusOr<std::string> found = FindProgram(options_.command[0], search); !found.ok()) {
    return found.status();
  }
  char self[4096];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof(self));
  const std::string exe(self, n < 0 ? 0 : n);
  absl::StatusOr<std::string> server = FindServerProgram(exe.substr(0, exe.rfind('/')), search);
  if (!server.ok()) return server.status();
  server_program_ = *server;
  if (absl::Status status = PrepareLogs(); !status.ok()) return status;

  absl::StatusOr<Keeper> keeper = Keeper::Start();
  if (!keeper.ok()) return keeper.status();
  keeper_.emplace(*std::move(keeper));
  const std::string job = options_.job.empty()
                              ? DefaultJobName(options_.command[0], hosts_.place.several() ? -1 : ::getpid())
                              : options_.job;
  absl::StatusOr<JobDir> dir = JobDir::Create(options_.shm_root, job);
  if (!dir.ok()) return dir.status();
  dir_.emplace(*std::move(dir));
  keeper_->GuardDirectory(dir_->path());
  if (absl::Status status = CheckSpace(dir_->fd(), options_.shm_root); !status.ok()) return status;
  const int servers = options_.servers > 0 ? options_.servers : options_.trainers;
  if (SocketPath(servers - 1).size() > rpc::kMaxSocketPath) {
    return absl::InvalidArgumentError(absl::StrCat("the path ", SocketPath(servers - 1),
                                                   " is too long for a socket; choose a shorter --job name"));
  }
  absl::StatusOr<int> port = FreePort();
  if (!port.ok()) return port.status();
  if (hosts_.place.several() && hosts_.secret_file.empty()) {
    hosts_.secret_file = absl::StrCat(dir_->path(), "/secret");
    if (absl::StatusOr<runtime::Secret> made = runtime::CreateSecretFile(hosts_.secret_file); !made.ok())
      return made.status();
    Say(absl::StrCat("the other hosts join with a copy of ", hosts_.secret_file, ": --join ",
                     hosts_.first_host, " --secret-file COPY --job ", job));
  }
  place_.world_size = place_.local_world = options_.trainers;
  place_.master_address = "127.0.0.1";
  place_.master_port = *port;
  place_.job = job;
  place_.cores = runtime::UsableCores();
  for (int i = 0; i < servers; ++i) place_.endpoints.push_back(absl::StrCat("unix:", SocketPath(i)));

  if (absl::Status status = MaskSignals(); !status.ok()) return status;
  if (absl::Status status = OpenStore(); !status.ok()) return status;
  for (std::unique_ptr<OutputPump>* pump : {&trainer_output_, &server_output_}) {
    absl::StatusOr<std::unique_ptr<OutputPump>> started = OutputPump::Start();
    if (!started.ok()) return started.status();
    *pump = *std::move(started);
  }
  Supervisor::Options rules;
  rules.trainers = options_.trainers;
  rules.servers = servers;
  rules.restarts = options_.restarts;
  rules.stall_timeout = options_.stall_timeout;
  rules.min_trainers = options_.min_trainers;
  rules.several_hosts = hosts_.place.several();
  if (rules.several_hosts) rules.start_limit = absl::InfiniteDuration();  // other hosts may come late
  supervisor_.emplace(rules);
  return absl::OkStatus();
}

absl::Status Run::PrepareLogs() {
  if (options_.dir.empty()) return absl::OkStatus();
  if (absl::Status status = MakeDirectory(options_.dir); !status.ok()) return status;
  return MakeDirectory(absl::StrCat(options_.dir, "/logs"));
}

absl::Status Run::MaskSignals() {
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, signal);
  // Before any thread starts, so that none takes them.
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  signals_.Reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  return signals_.ok() ? absl::OkStatus() : absl::ErrnoToStatus(errno, "cannot make a signalfd");
}

// Before any server tries: what is wrong with it is said once, and nothing was started. Starts threads.
absl::Status Run::OpenStore() {
  if (options_.store.empty()) return absl::OkStatus();
  const absl::StatusOr<runtime::StorePlace> place = runtime::ParseStorePlace(options_.store);
  if (!place.ok()) return place.status();
  absl::StatusOr<std::unique_ptr<runtime::MetaStore>> store = runtime::OpenJobStore(*place, *dir_);
  if (!store.ok()) return store.status();
  store_ = *std::move(store);
  return absl::OkStatus();
}

void Run::Loop() {
  Do(supervisor_->Start(runtime::SteadyNow()));
  watcher_ = std::make_unique<ClusterWatcher>(dir_->path(), hosts_.ServerPrefix());
  resizer_ = std::make_unique<ResizeCaller>(dir_->path());
  if (options_.stall_timeout < absl::InfiniteDuration())
    silence_ = std::make_unique<SilenceWatch>(dir_->path(), hosts_.ServerPrefix());
  while (!supervisor_->done()) {
    std::vector<pollfd> polls = {
        {signals_.get(), POLLIN, 0}, {watcher_->fd(), POLLIN, 0}, {resizer_->fd(), POLLIN, 0}};
    if (silence_ != nullptr) polls.push_back({silence_->fd(), POLLIN, 0});
    for (const auto& [member, child] : children_) polls.push_back({child.pidfd(), POLLIN, 0});
    const absl::Duration wait = supervisor_->next_tick() - runtime::SteadyNow();
    const int64_t wait_ms = wait >= absl::Hours(1)
                                ? 3'600'000
                                : absl::ToInt64Milliseconds(absl::Ceil(wait, absl::Milliseconds(1)));
    ::poll(polls.data(), polls.size(), std::max<int64_t>(wait_ms, 0));
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
      Do(supervisor_->Interrupted(info.ssi_signo, runtime::SteadyNow()));
    }
    Reap();
    if (std::optional<ClusterWatcher::Seen> seen = watcher_->Take()) SeeCluster(*seen);
    if (silence_ != nullptr) SeeStalled(Member::kServer, 0, silence_->Take());
    if (std::optional<absl::Status> resized = resizer_->Take(); resized.has_value() && !resized->ok()) {
      Do(supervisor_->ResizeFailed(std::string(resized->message()), runtime::SteadyNow()));
    }
    Do(supervisor_->Tick(runtime::SteadyNow()));
  }
}

void Run::SeeCluster(const ClusterWatcher::Seen& seen) {
  SeeStalled(Member::kTrainer, place_.first_rank, seen.stalled_trainers);
  SeeStalled(Member::kServer, 0, seen.stalled_servers);
  if (!progress_) {
    Do(supervisor_->ClusterSeen(seen.live_servers, seen.desired_servers, runtime::SteadyNow()));
    Do(supervisor_->TrainersSeen(seen.world_size, seen.desired_trainers, runtime::SteadyNow()));
    return;
  }
  const HostProgress::News news = progress_->See(seen.hosts, seen.waiting_for);
  if (!news.say.empty()) Say(news.say);
  if (!news.ranks.empty()) PlaceRanks(news.ranks, hosts_.place.index, &place_);
  for (const std::string& line : news.lost) Do(supervisor_->HostLost(line, runtime::SteadyNow()));
  if (news.all_finished) supervisor_->AllFinished(runtime::SteadyNow());
  if (news.may_end_servers) Do(supervisor_->MayEndServers(runtime::SteadyNow()));
  // How many servers of several hosts are this one's, a resize does not say.
  if (progress_->all_came()) Do(supervisor_->ClusterSeen(seen.live_servers, 0, runtime::SteadyNow()));
}

// `first`: whose number is 0 on this host.
void Run::SeeStalled(Member::Kind kind, int first,
                     const std::vector<std::pair<int, absl::Duration>>& stalled) {
  for (const auto& [index, lasts] : stalled)
    Do(supervisor_->Stalled({kind, index - first}, lasts, runtime::SteadyNow()));
}

void Run::Reap() {
  std::vector<std::pair<Member, runtime::ExitStatus>> ended;
  for (auto& [member, child] : children_) {
    absl::StatusOr<runtime::ExitStatus> status = child.Wait(absl::InfinitePast());
    if (status.ok()) ended.emplace_back(member, *status);
  }
  for (const auto& [member, status] : ended) {
    const auto it = children_.find(member);
    keeper_->DropGroup(it->second.identity().pid);
    children_.erase(it);
    Do(supervisor_->Exited(member, status, runtime::SteadyNow()));
  }
}

void Run::Do(const Actions& actions) {
  for (const Action& action : actions) {
    switch (action.kind) {
      case Action::kSpawn:
        Spawn(action.member);
        break;
      case Action::kSignal:
        if (const auto it = children_.find(action.member); it != children_.end()) {
          (void)it->second.Signal(action.signal);
        }
        break;
      case Action::kSay:
        Say(action.text);
        break;
      case Action::kShowLog:
        ShowLog(action.member.index);
        break;
      case Action::kResize:
        resizer_->Ask(action.trainers);
        break;
    }
  }
}

void Run::Spawn(Member member) {
  absl::StatusOr<ChildProcess> child =
      member.kind == Member::kTrainer ? SpawnTrainer(member.index) : SpawnServer(member.index);
  if (!child.ok()) {
    Do(supervisor_->SpawnFailed(member, std::string(child.status().message()), runtime::SteadyNow()));
    return;
  }
  keeper_->GuardGroup(child->identity().pid);
  children_.emplace(member, *std::move(child));
}

absl::StatusOr<ChildProcess> Run::SpawnTrainer(int rank) {
  TrainerPlace place = place_;
  place.rank = place.first_rank + rank;
  if (!hosts_.place.several())
    place.world_size = place.local_world = std::max(supervisor_->world_size(), rank + 1);
  ChildProcess::Options spawn;
  spawn.argv = options_.command;
  spawn.set_env = TrainerEnvironment(place, ::getenv);
  const bool tagged = place.rank > 0 || options_.tag_output;
  if (tagged) {
    spawn.stdout_stream.kind = ChildProcess::Stream::Kind::kPipe;
    spawn.stderr_stream.kind = ChildProcess::Stream::Kind::kPipe;
  }
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(spawn);
  if (child.ok() && tagged) {
    const std::string tag = absl::StrCat("[", place.rank, "] ");
    const auto to = [tag](int fd) {
      return [tag, fd](absl::string_view line) { WriteAll(fd, absl::StrCat(tag, line)); };
    };
    trainer_output_->Add(std::move(child->stdout_pipe()), to(STDOUT_FILENO), nullptr);
    trainer_output_->Add(std::move(child->stderr_pipe()), to(STDERR_FILENO), nullptr);
  }
  return child;
}

absl::StatusOr<ChildProcess> Run::SpawnServer(int index) {
  std::unique_ptr<ServerLog>& log = logs_[index];
  if (log == nullptr) {
    absl::StatusOr<std::unique_ptr<ServerLog>> opened =
        ServerLog::Open(options_.dir.empty() ? "" : absl::StrCat(options_.dir, "/logs/s", index, ".log"));
    if (!opened.ok()) return opened.status();
    log = *std::move(opened);
  }
  ChildProcess::Options spawn;
  spawn.argv = {server_program_,
                "--job",
                dir_->job(),
                "--job-dir",
                dir_->path(),
                "--id",
                absl::StrCat(hosts_.ServerPrefix(), index),
                "--listen",
                absl::StrCat("unix:", SocketPath(index)),
                "--expect",
                absl::StrCat(place_.endpoints.size())};
  if (options_.min_trainers > 0) spawn.argv.push_back(absl::StrCat("--min-trainers=", options_.min_trainers));
  if (options_.max_trainers > 0) spawn.argv.push_back(absl::StrCat("--max-trainers=", options_.max_trainers));
  if (options_.threads > 0) spawn.argv.push_back(absl::StrCat("--threads=", options_.threads));
  if (options_.verify_every > 0) spawn.argv.push_back(absl::StrCat("--verify-every=", options_.verify_every));
  if (store_ != nullptr) spawn.argv.push_back(absl::StrCat("--store=", options_.store));
  for (std::string& flag : hosts_.ServerFlags(options_.trainers)) spawn.argv.push_back(std::move(flag));
  // Others call it, and it passes on what is the coordinator's.
  if (hosts_.place.several() && hosts_.place.index == 0 && index == 0)
    spawn.argv.push_back(absl::StrCat("--listen=", hosts_.first_host));
  spawn.stdout_stream.kind = ChildProcess::Stream::Kind::kPipe;
  spawn.stderr_stream.kind = ChildProcess::Stream::Kind::kPipe;
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(spawn);
  if (child.ok()) {
    log->Begin(2);
    for (runtime::UniqueFd* pipe : {&child->stdout_pipe(), &child->stderr_pipe()}) {
      server_output_->Add(
          std::move(*pipe), [log = log.get()](absl::string_view line) { log->Add(line); },
          [log = log.get()] { log->End(); });
    }
  }
  return child;
}

void Run::ShowLog(int server) {
  const auto it = logs_.find(server);
  if (it == logs_.end()) return;
  for (const std::string& line : it->second->LastLines(absl::Milliseconds(500))) {
    WriteAll(STDERR_FILENO, absl::StrCat("s", server, ": ", line));
  }
}

void Run::CleanUp() {
  watcher_.reset();
  resizer_.reset();
  silence_.reset();
  children_.clear();
  if (trainer_output_) trainer_output_->Finish(absl::Seconds(1));
  if (server_output_) server_output_->Finish(absl::Seconds(1));
  if (dir_) {
    // The kernel drops the locks of the dead a moment after they were reaped, if they left children.
    const absl::Time limit = runtime::SteadyNow() + absl::Seconds(2);
    absl::StatusOr<bool> removed = dir_->RemoveOwn();
    while (removed.ok() && !*removed && runtime::SteadyNow() < limit) {
      absl::SleepFor(absl::Milliseconds(10));
      removed = dir_->RemoveOwn();
    }
    if (!removed.ok()) Say(removed.status().message());
    if (removed.ok() && !*removed) {
      Say(absl::StrCat("somebody still uses ", dir_->path(), "; `sherd gc` removes it later"));
    }
    if (removed.ok() && *removed && store_ != nullptr) {
      const absl::Status cleared = runtime::ClearJobStore(*store_, dir_->uuid());
      if (!cleared.ok()) Say(cleared.message());
    }
  }
  if (keeper_) keeper_->Dismiss();
}

}  // namespace

int RunJob(const RunOptions& options) {
  Run run(options);
  if (absl::Status status = run.Prepare(); !status.ok()) {
    Say(status.message());
    run.CleanUp();
    return 1;
  }
  run.Loop();
  run.CleanUp();
  return run.exit_status();
}

}  // namespace sherd::cli

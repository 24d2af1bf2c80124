#include "client/cli/supervisor.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sherd::cli {
namespace {

constexpr int kFailed = 1;

Action Say(std::string text) { return {Action::kSay, {}, 0, std::move(text), 0}; }

}  // namespace

std::string Member::ToString() const {
  return kind == kTrainer ? absl::StrCat("trainer ", index) : absl::StrCat("server s", index);
}

std::string Action::ToString() const {
  switch (kind) {
    case kSpawn:
      return absl::StrCat("spawn ", member.ToString());
    case kSignal:
      return absl::StrCat("signal ", signal, " ", member.ToString());
    case kSay:
      return absl::StrCat("say ", text);
    case kShowLog:
      return absl::StrCat("log ", member.ToString());
    case kResize:
      return absl::StrCat("resize ", trainers);
  }
  return "";
}

Supervisor::Supervisor(const Options& options)
    : options_(options),
      trainers_(options.trainers),
      servers_(options.servers),
      desired_servers_(options.servers),
      world_size_(options.trainers),
      desired_trainers_(options.trainers),
      hold_servers_(options.several_hosts) {}

Supervisor::Process& Supervisor::process(Member member) { return all(member.kind)[member.index]; }

bool Supervisor::AnyLeft(const std::vector<Process>& processes) const {
  return std::any_of(processes.begin(), processes.end(),
                     [](const Process& p) { return p.state != State::kEnded; });
}

int Supervisor::ServersLeft() const {
  return std::count_if(servers_.begin(), servers_.end(),
                       [](const Process& p) { return p.state != State::kEnded; });
}

void Supervisor::Spawn(Member member, Actions* actions) {
  Process& p = process(member);
  p.state = State::kRunning;
  p.up = p.killed = false;
  actions->push_back({Action::kSpawn, member, 0, "", 0});
}

Actions Supervisor::Start(absl::Time now) {
  Actions actions;
  limit_ = now + options_.start_limit;
  for (int i = 0; i < options_.servers; ++i) Spawn({Member::kServer, i}, &actions);
  return actions;
}

Actions Supervisor::Exited(Member member, const runtime::ExitStatus& status, absl::Time now) {
  Actions actions;
  process(member).state = State::kEnded;
  if (Ending()) {
    Wind(now, &actions);
  } else if (member.kind == Member::kTrainer) {
    TrainerExited(member.index, status, now, &actions);
  } else {
    ServerExited(member.index, status, now, &actions);
  }
  return actions;
}

void Supervisor::TrainerExited(int rank, const runtime::ExitStatus& status, absl::Time now,
                               Actions* actions) {
  const Member member{Member::kTrainer, rank};
  if (status.success() && rank >= world_size_ && rank < desired_trainers_) {
    // Was let go by one resize and is asked for by the next already. One that only ever ends joins nothing.
    process(member).gave_up = ++process(member).restarts > options_.restarts + 1;
    if (!process(member).gave_up) return Spawn(member, actions);
  }
  if (status.success() || rank >= world_size()) {
    if (!AnyLeft(trainers_)) Wind(now, actions);
    return;
  }
  const std::string how = absl::StrCat(member.ToString(), ": ", status.ToString());
  if (rank >= world_size_ && (!status.signaled || process(member).restarts >= options_.restarts)) {
    process(member).gave_up = true;
    actions->push_back(Say(absl::StrCat(how, "; the job goes on without it: `sherd resize --trainers ",
                                        world_size_, "` takes the resize back")));
    return;
  }
  if (!status.signaled) {
    Fail(status.code, absl::StrCat(how, "; the job ends"), now, actions);
  } else if (!Restart(member, how, now, actions) && !GoOnWithout(rank, how, actions)) {
    Fail(128 + status.code, absl::StrCat(how, " after ", options_.restarts, " restarts; the job ends"), now,
         actions);
  }
}

bool Supervisor::GoOnWithout(int rank, const std::string& how, Actions* actions) {
  int left = world_size_ - 1;
  for (int r = 0; r < world_size_; ++r) left -= trainers_[r].gave_up ? 1 : 0;
  if (options_.min_trainers == 0 || left < options_.min_trainers) return false;
  trainers_[rank].gave_up = true;
  actions->push_back(Say(absl::StrCat(how, " after ", options_.restarts, " restarts; the job goes on with ",
                                      left, left == 1 ? " trainer" : " trainers")));
  actions->push_back({Action::kResize, {}, 0, "", left});
  return true;
}

Actions Supervisor::Stalled(Member member, absl::Duration lasts, absl::Time now) {
  Actions actions;
  const bool known = member.index >= 0 && member.index < static_cast<int>(all(member.kind).size());
  if (Ending() || lasts < options_.stall_timeout || !known) return actions;
  Process& p = process(member);
  // A server that starts may take its time: there is a limit for that.
  if (p.state != State::kRunning || p.killed || (member.kind == Member::kServer && !p.up)) return actions;
  p.killed = true;
  actions.push_back(
      Say(absl::StrCat(member.ToString(), ": lives but has ",
                       member.kind == Member::kServer ? "not moved or answered" : "not moved", " for ",
                       absl::ToInt64Seconds(lasts), " s while others wait; killing it (--stall-timeout ",
                       absl::FormatDuration(options_.stall_timeout), ")")));
  actions.push_back({Action::kSignal, member, SIGKILL, "", 0});
  return actions;
}

Actions Supervisor::ResizeFailed(const std::string& why, absl::Time now) {
  Actions actions;
  if (phase_ == Phase::kRunning) {
    Fail(kFailed, absl::StrCat("the job cannot go on with fewer trainers: ", why), now, &actions);
  }
  return actions;
}

void Supervisor::ServerExited(int index, const runtime::ExitStatus& status, absl::Time now,
                              Actions* actions) {
  const Member member{Member::kServer, index};
  const bool up = process(member).up;
  if (status.success() && ServersLeft() > 0) {
    // Retired. Should the cluster want it nevertheless, it says so in its next message.
    if (ServersLeft() >= desired_servers_) process(member).restarts = 0;
    return;
  }
  const std::string how = absl::StrCat(member.ToString(), ": ", status.ToString());
  const bool may_restart = status.signaled || up;
  if (may_restart && Restart(member, how, now, actions)) return;
  if (!status.signaled) actions->push_back({Action::kShowLog, member, 0, "", 0});
  if (index >= options_.servers && !up) {
    // One more for a resize, which can fail alone.
    actions->push_back(Say(absl::StrCat(how, "; the job goes on without it")));
    return;
  }
  Fail(kFailed,
       absl::StrCat(how, may_restart ? absl::StrCat(" after ", options_.restarts, " restarts") : "",
                    "; the job ends"),
       now, actions);
}

bool Supervisor::Restart(Member member, const std::string& how, absl::Time now, Actions* actions) {
  Process& p = process(member);
  if (p.restarts >= options_.restarts) return false;
  absl::Duration wait = options_.first_wait;
  for (int i = 0; i < p.restarts && wait < options_.longest_wait; ++i) wait *= 2;
  wait = std::min(wait, options_.longest_wait);
  ++p.restarts;
  p.state = State::kWaiting;
  p.start_at = now + wait;
  actions->push_back(Say(absl::StrCat(how, "; restart ", p.restarts, " of ", options_.restarts, " in ",
                                      absl::FormatDuration(wait))));
  return true;
}

Actions Supervisor::SpawnFailed(Member member, const std::string& why, absl::Time now) {
  Actions actions;
  process(member).state = State::kEnded;
  if (Ending()) {
    Wind(now, &actions);
  } else {
    Fail(kFailed, absl::StrCat(member.ToString(), ": ", why, "; the job ends"), now, &actions);
  }
  return actions;
}

Actions Supervisor::ClusterSeen(const std::vector<int>& live_servers, int desired_servers, absl::Time now) {
  Actions actions;
  if (phase_ != Phase::kStartingServers && phase_ != Phase::kRunning) return actions;
  for (int index : live_servers) {
    if (index >= 0 && index < static_cast<int>(servers_.size())) servers_[index].up = true;
  }
  if (phase_ == Phase::kStartingServers) {
    if (!std::all_of(servers_.begin(), servers_.end(), [](const Process& p) { return p.up; })) return actions;
    phase_ = Phase::kRunning;
    limit_ = absl::InfiniteFuture();
    for (int r = 0; r < options_.trainers; ++r) Spawn({Member::kTrainer, r}, &actions);
  }
  if (desired_servers <= 0) return actions;
  desired_servers_ = desired_servers;
  int left = ServersLeft();
  for (int i = 0; left < desired_servers; ++i) {
    const bool first = i == static_cast<int>(servers_.size());
    if (first) servers_.emplace_back();
    if (servers_[i].state != State::kEnded) continue;
    ++left;
    // One that ends again and again is not started for ever, nor is another in its place.
    if (!first && ++servers_[i].restarts > options_.restarts) continue;
    Spawn({Member::kServer, i}, &actions);
  }
  return actions;
}

int Supervisor::world_size() const { return std::max(world_size_, desired_trainers_); }

Actions Supervisor::TrainersSeen(int world_size, int desired, absl::Time now) {
  Actions actions;
  if (phase_ != Phase::kRunning || world_size <= 0) return actions;
  const bool fewer = world_size < world_size_;
  world_size_ = world_size;
  desired_trainers_ = desired;
  while (static_cast<int>(trainers_.size()) < desired) trainers_.emplace_back();
  for (int r = 0; r < static_cast<int>(trainers_.size()); ++r) {
    Process& p = trainers_[r];
    if (r >= this->world_size()) {
      if (p.state == State::kWaiting) p.state = State::kEnded;
      p.gave_up = false;
      p.restarts = 0;
    } else if (p.state == State::kEnded && (r < world_size ? p.gave_up && fewer : !p.gave_up)) {
      p.gave_up = false;
      p.restarts = 0;
      Spawn({Member::kTrainer, r}, &actions);
    }
  }
  if (!AnyLeft(trainers_)) Wind(now, &actions);
  return actions;
}

Actions Supervisor::MayEndServers(absl::Time now) {
  Actions actions;
  hold_servers_ = false;
  if (phase_ == Phase::kWaitingForHosts) Wind(now, &actions);
  return actions;
}

void Supervisor::AllFinished(absl::Time now) {
  if (std::exchange(all_finished_, true)) return;
  if (phase_ == Phase::kWaitingForHosts) limit_ = std::min(limit_, now + options_.leave_grace);
}

Actions Supervisor::HostLost(const std::string& why, absl::Time now) {
  Actions actions;
  if (phase_ == Phase::kStartingServers || phase_ == Phase::kRunning) Fail(kFailed, why, now, &actions);
  return actions;
}

Actions Supervisor::Interrupted(int signal, absl::Time now) {
  Actions actions;
  if (interrupted_) {
    if (phase_ == Phase::kDone) return actions;
    actions.push_back(Say("killing all"));
    phase_ = Phase::kEndingServers;
    for (std::vector<Process>* processes : {&trainers_, &servers_}) {
      for (Process& p : *processes) {
        if (p.state == State::kWaiting) p.state = State::kEnded;
      }
    }
    SignalAll(Member::kTrainer, SIGKILL, &actions);
    SignalAll(Member::kServer, SIGKILL, &actions);
    limit_ = absl::InfiniteFuture();
    return actions;
  }
  interrupted_ = true;
  if (phase_ == Phase::kWaitingForHosts) return MayEndServers(now);
  if (phase_ == Phase::kStartingServers || phase_ == Phase::kRunning) {
    Fail(128 + signal, signal == SIGINT ? "stopping (Ctrl-C again kills)" : "stopping", now, &actions);
  }
  return actions;
}

void Supervisor::Fail(int exit_status, const std::string& why, absl::Time now, Actions* actions) {
  actions->push_back(Say(why));
  exit_status_ = exit_status;
  Wind(now, actions);
}

void Supervisor::Wind(absl::Time now, Actions* actions) {
  if (phase_ == Phase::kDone) return;
  if (phase_ == Phase::kStartingServers || phase_ == Phase::kRunning) {
    phase_ = Phase::kEndingTrainers;
    limit_ = now + options_.trainer_grace;
    for (Process& p : trainers_) {
      if (p.state == State::kWaiting) p.state = State::kEnded;
    }
    SignalAll(Member::kTrainer, SIGTERM, actions);
  }
  if (phase_ == Phase::kEndingTrainers && !AnyLeft(trainers_)) {
    phase_ = Phase::kWaitingForHosts;
    limit_ = now + (all_finished_ ? options_.leave_grace : options_.hosts_grace);
  }
  // A job that failed is over on all hosts.
  if (phase_ == Phase::kWaitingForHosts && (!hold_servers_ || exit_status_ != 0)) {
    phase_ = Phase::kEndingServers;
    limit_ = now + options_.server_grace;
    for (Process& p : servers_) {
      if (p.state == State::kWaiting) p.state = State::kEnded;
    }
    SignalAll(Member::kServer, SIGTERM, actions);
  }
  if (phase_ == Phase::kEndingServers && !AnyLeft(servers_) && !AnyLeft(trainers_)) {
    phase_ = Phase::kDone;
    limit_ = absl::InfiniteFuture();
  }
}

void Supervisor::SignalAll(Member::Kind kind, int signal, Actions* actions) {
  std::vector<Process>& processes = all(kind);
  for (int i = 0; i < static_cast<int>(processes.size()); ++i) {
    if (processes[i].state == State::kRunning) {
      actions->push_back({Action::kSignal, {kind, i}, signal, "", 0});
    }
  }
}

Actions Supervisor::Tick(absl::Time now) {
  Actions actions;
  for (Member::Kind kind : {Member::kServer, Member::kTrainer}) {
    std::vector<Process>& processes = all(kind);
    for (int i = 0; i < static_cast<int>(processes.size()); ++i) {
      if (processes[i].state == State::kWaiting && processes[i].start_at <= now) Spawn({kind, i}, &actions);
    }
  }
  if (now < limit_) return actions;
  limit_ = absl::InfiniteFuture();
  if (phase_ == Phase::kStartingServers) {
    std::string silent;
    for (int i = 0; i < static_cast<int>(servers_.size()); ++i) {
      if (servers_[i].up) continue;
      actions.push_back({Action::kShowLog, {Member::kServer, i}, 0, "", 0});
      absl::StrAppend(&silent, silent.empty() ? "" : ", ", "s", i);
    }
    Fail(kFailed,
         absl::StrCat("servers did not come up within ", absl::FormatDuration(options_.start_limit), ": ",
                      silent),
         now, &actions);
  } else if (phase_ == Phase::kWaitingForHosts) {
    actions = MayEndServers(now);
  } else if (phase_ == Phase::kEndingTrainers) {
    actions.push_back(Say("trainers did not end in time; killing them"));
    SignalAll(Member::kTrainer, SIGKILL, &actions);
  } else if (phase_ == Phase::kEndingServers) {
    actions.push_back(Say("servers did not end in time; killing them"));
    SignalAll(Member::kServer, SIGKILL, &actions);
  }
  return actions;
}

absl::Time Supervisor::next_tick() const {
  absl::Time next = limit_;
  for (const std::vector<Process>* processes : {&servers_, &trainers_}) {
    for (const Process& p : *processes) {
      if (p.state == State::kWaiting) next = std::min(next, p.start_at);
    }
  }
  return next;
}

}  // namespace sherd::cli

#include "server/host_watch.h"

#include <utility>

#include "proto/epoch_record.h"
#include "runtime/clock.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr absl::Duration kReportAgain = absl::Milliseconds(100);

}  // namespace

HostWatch::HostWatch(std::string host, runtime::ExitWatch* watch, Report report)
    : host_(std::move(host)), watch_(watch), report_(std::move(report)), thread_([this] { Run(); }) {}

HostWatch::~HostWatch() {
  std::map<Key, runtime::ExitWatch::Id> watched;
  {
    MutexLock lock(mu_);
    stop_ = true;
    watched.swap(watched_);
    changed_.SignalAll();
  }
  for (const auto& w : watched) watch_->Cancel(w.second);
  thread_.join();
}

void HostWatch::Look(const v1::Cluster& cluster) {
  const runtime::ProcessIdentity self = runtime::Self();
  for (const v1::Member& m : cluster.members()) {
    if (m.host() != host_ || m.process().pid() == 0) continue;
    const runtime::ProcessIdentity process{m.process().pid(), m.process().start_ticks()};
    if (process == self) continue;
    const Key key(process.pid, process.start_ticks);
    bool known = true;
    {
      MutexLock lock(mu_);
      if (stop_) return;
      known = !watched_.emplace(key, 0).second;
    }
    if (known) {
      if (m.must_die()) runtime::KillAndWait(process, runtime::SteadyNow()).IgnoreError();
      continue;
    }
    const absl::StatusOr<runtime::ExitWatch::Id> id =
        watch_->Watch(process, [this](const runtime::ProcessIdentity& p) { Ended(p); });
    if (!id.ok()) {
      spdlog::error("process {} cannot be watched: {}", process.pid, id.status().ToString());
      MutexLock lock(mu_);
      watched_.erase(key);
      continue;
    }
    {
      MutexLock lock(mu_);
      const auto it = watched_.find(key);
      if (it != watched_.end()) it->second = *id;
    }
    if (m.must_die()) runtime::KillAndWait(process, runtime::SteadyNow()).IgnoreError();
  }
}

bool HostWatch::told_all() const {
  MutexLock lock(mu_);
  return ended_.empty();
}

void HostWatch::Ended(const runtime::ProcessIdentity& process) {
  MutexLock lock(mu_);
  ended_.push_back(process);
  changed_.SignalAll();
}

void HostWatch::Run() {
  for (;;) {
    runtime::ProcessIdentity process;
    {
      MutexLock lock(mu_);
      while (!stop_ && ended_.empty()) changed_.Wait(mu_);
      if (stop_) return;
      process = ended_.front();
    }
    const absl::Status reported = report_(process);
    MutexLock lock(mu_);
    if (reported.ok()) {
      ended_.pop_front();
    } else if (!stop_) {
      changed_.WaitFor(mu_, kReportAgain);
    }
  }
}

}  // namespace sherd::server

#include "runtime/fake_exit_watch.h"

#include <utility>

namespace sherd::runtime {

ProcessIdentity FakeExitWatch::Start() {
  MutexLock lock(mu_);
  const ProcessIdentity identity{next_pid_, static_cast<uint64_t>(next_pid_)};
  ++next_pid_;
  alive_.insert(identity);
  return identity;
}

void FakeExitWatch::Exit(const ProcessIdentity& identity) {
  MutexLock lock(mu_);
  if (alive_.erase(identity) == 0) return;
  for (const auto& [id, entry] : entries_) {
    if (entry.identity == identity) due_.push_back(id);
  }
}

int FakeExitWatch::Deliver() {
  int delivered = 0;
  for (;;) {
    Entry entry;
    {
      MutexLock lock(mu_);
      running_ = 0;
      finished_.SignalAll();
      if (due_.empty()) return delivered;
      const Id id = due_.front();
      due_.pop_front();
      auto it = entries_.find(id);
      if (it == entries_.end()) continue;
      entry = std::move(it->second);
      entries_.erase(it);
      running_ = id;
      running_on_ = std::this_thread::get_id();
    }
    entry.callback(entry.identity);
    ++delivered;
  }
}

absl::StatusOr<ExitWatch::Id> FakeExitWatch::Watch(const ProcessIdentity& identity, Callback callback) {
  MutexLock lock(mu_);
  const Id id = next_id_++;
  entries_.emplace(id, Entry{identity, std::move(callback)});
  if (alive_.count(identity) == 0) due_.push_back(id);
  return id;
}

void FakeExitWatch::Cancel(Id id) {
  Callback dropped;
  MutexLock lock(mu_);
  auto it = entries_.find(id);
  if (it != entries_.end()) {
    dropped = std::move(it->second.callback);
    entries_.erase(it);
    return;
  }
  if (running_ == id && running_on_ == std::this_thread::get_id()) return;
  while (running_ == id) finished_.Wait(mu_);
}

}  // namespace sherd::runtime

#include "runtime/exit_watch.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "runtime/mutex.h"

namespace sherd::runtime {
namespace {

class PidfdExitWatch final : public ExitWatch {
 public:
  PidfdExitWatch(UniqueFd epoll, UniqueFd wake)
      : epoll_(std::move(epoll)), wake_(std::move(wake)), thread_([this] { Run(); }) {}

  ~PidfdExitWatch() override {
    {
      MutexLock lock(mu_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
  }

  absl::StatusOr<Id> Watch(const ProcessIdentity& identity, Callback callback) override {
    absl::StatusOr<UniqueFd> pidfd = OpenPidfd(identity);
    const bool dead = absl::IsNotFound(pidfd.status());
    if (!pidfd.ok() && !dead) return pidfd.status();
    MutexLock lock(mu_);
    const Id id = next_id_++;
    Entry entry{identity, std::move(callback), dead ? UniqueFd() : std::move(*pidfd)};
    if (dead) {
      already_dead_.push_back(id);
      Wake();
    } else {
      epoll_event event = {};
      // Once: a fork without exec may keep a pidfd in epoll that is closed here, and would report it for
      // ever.
      event.events = EPOLLIN | EPOLLONESHOT;
      event.data.u64 = id;
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, entry.pidfd.get(), &event) != 0) {
        return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch process ", identity.pid));
      }
    }
    entries_.emplace(id, std::move(entry));
    return id;
  }

  void Cancel(Id id) override {
    Callback dropped;  // destroyed after the lock is released: it may own anything
    MutexLock lock(mu_);
    auto it = entries_.find(id);
    if (it != entries_.end()) {
      dropped = std::move(it->second.callback);
      entries_.erase(it);  // closing the pidfd takes it out of epoll
      return;
    }
    if (std::this_thread::get_id() == thread_.get_id()) return;
    while (running_ == id) finished_.Wait(mu_);
  }

 private:
  static constexpr Id kNone = 0;  // also epoll's tag of wake_

  struct Entry {
    ProcessIdentity identity;
    Callback callback;
    UniqueFd pidfd;
  };

  void Wake() {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then a wake-up is pending anyway.
    (void)!::write(wake_.get(), &one, sizeof(one));
  }

  void Run() {
    for (;;) {
      epoll_event events[16];
      const int n = ::epoll_wait(epoll_.get(), events, 16, -1);
      for (int i = 0; i < n; ++i) {
        if (events[i].data.u64 != kNone) {
          Finish(events[i].data.u64);
          continue;
        }
        uint64_t ignored;
        (void)!::read(wake_.get(), &ignored, sizeof(ignored));
      }
      std::deque<Id> dead;
      {
        MutexLock lock(mu_);
        if (stopping_) return;
        dead.swap(already_dead_);
      }
      for (Id id : dead) Finish(id);
    }
  }

  // Runs and forgets one watch, if it was not cancelled meanwhile.
  void Finish(Id id) {
    Entry entry;
    {
      MutexLock lock(mu_);
      auto it = entries_.find(id);
      if (it == entries_.end() || stopping_) return;
      entry = std::move(it->second);
      entries_.erase(it);
      running_ = id;
    }
    entry.callback(entry.identity);
    entry.callback = nullptr;  // what it owns is gone before Cancel() returns
    MutexLock lock(mu_);
    running_ = kNone;
    finished_.SignalAll();
  }

  const UniqueFd epoll_;
  const UniqueFd wake_;
  Mutex mu_;
  CondVar finished_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Id next_id_ ABSL_GUARDED_BY(mu_) = 1;
  Id running_ ABSL_GUARDED_BY(mu_) = kNone;
  absl::flat_hash_map<Id, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<Id> already_dead_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last: starts when all the rest is there
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExitWatch>> MakeExitWatch() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.ok()) return absl::ErrnoToStatus(errno, "epoll_create1");
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.ok()) return absl::ErrnoToStatus(errno, "eventfd");
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0)
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  return std::make_unique<PidfdExitWatch>(std::move(epoll), std::move(wake));
}

}  // namespace sherd::runtime

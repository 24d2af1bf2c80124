// A mutex that both checkers understand: clang's thread-safety analysis through its annotations, and
// ThreadSanitizer, which does not see into absl::Mutex because Debian's Abseil is built without it.
//
//   Mutex mu_;
//   CondVar changed_;
//   int count_ ABSL_GUARDED_BY(mu_) = 0;
//   ...
//   MutexLock lock(mu_);
//   while (count_ == 0) changed_.Wait(mu_);
//
// Not recursive, no priority inheritance, not for shared memory.
#ifndef SHERD_RUNTIME_MUTEX_H_
#define SHERD_RUNTIME_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace sherd::runtime {

class CondVar;

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_.Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// Wakes may be spurious: wait in a loop over the condition.
class CondVar {
 public:
  void Wait(Mutex& mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // False when `timeout` passed first.
  bool WaitFor(Mutex& mu, absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (timeout == absl::InfiniteDuration()) {
      Wait(mu);
      return true;
    }
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    const bool woken = cv_.wait_for(lock, absl::ToChronoNanoseconds(timeout)) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void Signal() { cv_.notify_one(); }
  void SignalAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

// Something that happens once. Notify() at most once, from any thread.
class Notification {
 public:
  void Notify() {
    MutexLock lock(mu_);
    done_ = true;
    changed_.SignalAll();
  }
  bool HasBeenNotified() const {
    MutexLock lock(mu_);
    return done_;
  }
  void Wait() const {
    MutexLock lock(mu_);
    while (!done_) changed_.Wait(mu_);
  }
  // False when `timeout` passed first.
  bool WaitFor(absl::Duration timeout) const {
    const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    MutexLock lock(mu_);
    while (!done_) {
      const absl::Duration left = timeout - absl::FromChrono(std::chrono::steady_clock::now() - start);
      if (left <= absl::ZeroDuration()) return false;
      changed_.WaitFor(mu_, left);
    }
    return true;
  }

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_MUTEX_H_

// ExitWatch without processes: for simulation and tests of whoever reacts to deaths.
//
//   FakeExitWatch watch;
//   ProcessIdentity trainer = watch.Start();
//   watch.Watch(trainer, callback);
//   watch.Exit(trainer);
//   watch.Deliver();          // callback runs here, on this thread
//
// Delivery is a step of its own, so that a simulation decides when a death is noticed. Thread-safe.
#ifndef SHERD_RUNTIME_FAKE_EXIT_WATCH_H_
#define SHERD_RUNTIME_FAKE_EXIT_WATCH_H_

#include <deque>
#include <map>
#include <set>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "runtime/exit_watch.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

class FakeExitWatch final : public ExitWatch {
 public:
  // A new live process with an identity of its own.
  ProcessIdentity Start();
  // The process ends; those who watch it hear of it at Deliver(). Unknown or dead: nothing.
  void Exit(const ProcessIdentity& identity);
  // Runs the callbacks that are due, in the order of the deaths, on this thread; returns how many. One thread
  // at a time.
  int Deliver();

  absl::StatusOr<Id> Watch(const ProcessIdentity& identity, Callback callback) override;
  void Cancel(Id id) override;

 private:
  struct Entry {
    ProcessIdentity identity;
    Callback callback;
  };

  Mutex mu_;
  CondVar finished_;
  std::set<ProcessIdentity> alive_ ABSL_GUARDED_BY(mu_);
  std::map<Id, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<Id> due_ ABSL_GUARDED_BY(mu_);
  int32_t next_pid_ ABSL_GUARDED_BY(mu_) = 1;
  Id next_id_ ABSL_GUARDED_BY(mu_) = 1;
  Id running_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread::id running_on_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_FAKE_EXIT_WATCH_H_

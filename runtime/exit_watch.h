// Tells when processes of this host end, within milliseconds and however they end.
//
//   absl::StatusOr<std::unique_ptr<ExitWatch>> watch = MakeExitWatch();
//   absl::StatusOr<ExitWatch::Id> id = (*watch)->Watch(trainer, [&](const ProcessIdentity& dead) { ... });
//   ...
//   (*watch)->Cancel(*id);
//
// The in-memory twin is FakeExitWatch (fake_exit_watch.h); one conformance suite runs on both.
#ifndef SHERD_RUNTIME_EXIT_WATCH_H_
#define SHERD_RUNTIME_EXIT_WATCH_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/process_identity.h"

namespace sherd::runtime {

// Thread-safe. Callbacks run one at a time, on a thread of the watch, never inside Watch(); they may call
// Watch and Cancel, and should be short: the next exit waits for them.
class ExitWatch {
 public:
  using Id = uint64_t;
  using Callback = std::function<void(const ProcessIdentity&)>;

  // No callback runs during or after destruction. Not to be destroyed from a callback.
  virtual ~ExitWatch() = default;

  // Calls `callback` once when the process is dead; soon, when it is already, or when its pid belongs to
  // another process by now. Any process may be watched, any number of times. UNIMPLEMENTED when the kernel
  // has no pidfd; RESOURCE_EXHAUSTED when this process has too many open files.
  virtual absl::StatusOr<Id> Watch(const ProcessIdentity& identity, Callback callback) = 0;

  // After it returns the callback does not run and never will (unless called from that very callback). A
  // finished or unknown id is no error. Waits for a callback that runs, so: hold no lock that the callback
  // takes.
  virtual void Cancel(Id id) = 0;
};

// The real one: a pidfd per process, one thread for all.
absl::StatusOr<std::unique_ptr<ExitWatch>> MakeExitWatch();

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_EXIT_WATCH_H_

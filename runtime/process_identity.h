// Which process, beyond doubt: a pid alone may be handed to another process a moment later, a pid with its
// start time may not. Also how to end one and know that it has ended.
//
//   absl::StatusOr<ProcessIdentity> server = Identify(pid);
//   ...
//   // A successor may touch what *server owned only after this:
//   absl::Status dead = KillAndWait(*server, SteadyNow() + absl::Seconds(10));
//
// "Dead" means that no thread of the process will ever run again: a zombie is dead. Works for any process of
// this host in the same pid namespace, not only for children. Needs Linux 5.4 (pidfd) and /proc. All
// functions are thread-safe.
#ifndef SHERD_RUNTIME_PROCESS_IDENTITY_H_
#define SHERD_RUNTIME_PROCESS_IDENTITY_H_

#include <sys/types.h>

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

// Trivially copyable: may stand in shared memory.
struct ProcessIdentity {
  int32_t pid = 0;
  // Start of the process in clock ticks since the host booted (field 22 of /proc/PID/stat).
  uint64_t start_ticks = 0;

  friend bool operator==(const ProcessIdentity& a, const ProcessIdentity& b) {
    return a.pid == b.pid && a.start_ticks == b.start_ticks;
  }
  friend bool operator!=(const ProcessIdentity& a, const ProcessIdentity& b) { return !(a == b); }
  friend bool operator<(const ProcessIdentity& a, const ProcessIdentity& b) {
    return a.pid != b.pid ? a.pid < b.pid : a.start_ticks < b.start_ticks;
  }
  template <typename H>
  friend H AbslHashValue(H h, const ProcessIdentity& p) {
    return H::combine(std::move(h), p.pid, p.start_ticks);
  }
  friend std::ostream& operator<<(std::ostream& os, const ProcessIdentity& p) { return os << p.ToString(); }

  // "1234@56789"; ParseProcessIdentity reads it back.
  std::string ToString() const;
};

// INVALID_ARGUMENT when `text` is not what ToString() writes.
absl::StatusOr<ProcessIdentity> ParseProcessIdentity(absl::string_view text);

// The identity of the process that has `pid` now (a zombie has one too). NOT_FOUND when there is none.
absl::StatusOr<ProcessIdentity> Identify(pid_t pid);

// This process. After fork() the child gets its own.
ProcessIdentity Self();

// A descriptor that polls readable once the process is dead. NOT_FOUND when `identity` names no process any
// more (its pid may belong to another by now); UNIMPLEMENTED when the kernel has no pidfd.
absl::StatusOr<UniqueFd> OpenPidfd(const ProcessIdentity& identity);

// False once the process is dead. A process that cannot be asked about (no pidfd) counts as alive: the safe
// answer for whoever wants to take over its memory.
bool IsAlive(const ProcessIdentity& identity);

// Sends SIGKILL and waits until the process is dead; OK at once when it already is. Never signals another
// process.
//   PERMISSION_DENIED   the process belongs to another user
//   DEADLINE_EXCEEDED   it was signalled but had not ended by `deadline` (it hangs in the kernel)
absl::Status KillAndWait(const ProcessIdentity& identity, absl::Time deadline);

// Polls `fd` for reading until `deadline`; false when that passed first. EINTR is handled.
absl::StatusOr<bool> PollReadable(int fd, absl::Time deadline);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_PROCESS_IDENTITY_H_

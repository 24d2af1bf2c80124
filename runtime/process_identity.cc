#include "runtime/process_identity.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/clock.h"
#include "runtime/process_stat.h"

namespace sherd::runtime {
namespace {

absl::Status Gone(pid_t pid) { return absl::NotFoundError(absl::StrCat("no process ", pid, " runs here")); }

int PidfdOpen(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

}  // namespace

std::string ProcessIdentity::ToString() const { return absl::StrCat(pid, "@", start_ticks); }

absl::StatusOr<ProcessIdentity> ParseProcessIdentity(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('@', 1));
  ProcessIdentity id;
  if (!absl::SimpleAtoi(parts.first, &id.pid) || !absl::SimpleAtoi(parts.second, &id.start_ticks) ||
      id.pid <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not PID@START_TICKS"));
  }
  return id;
}

absl::StatusOr<ProcessIdentity> Identify(pid_t pid) {
  if (pid <= 0) return absl::InvalidArgumentError(absl::StrCat(pid, " is not the pid of a process"));
  absl::StatusOr<ProcessStat> stat = ReadProcessStat(pid);
  if (!stat.ok()) return stat.status();
  return ProcessIdentity{pid, stat->start_ticks};
}

ProcessIdentity Self() {
  const pid_t pid = ::getpid();
  absl::StatusOr<ProcessIdentity> self = Identify(pid);
  // Without /proc the pid alone is left; OpenPidfd by others then reports the missing /proc.
  return self.ok() ? *self : ProcessIdentity{pid, 0};
}

absl::StatusOr<UniqueFd> OpenPidfd(const ProcessIdentity& identity) {
  if (identity.pid <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(identity.pid, " is not the pid of a process"));
  }
  UniqueFd fd(PidfdOpen(identity.pid));
  if (!fd.ok()) {
    // EINVAL and ENOENT: the number lives on as a thread of some other process.
    if (errno == ESRCH || errno == EINVAL || errno == ENOENT) return Gone(identity.pid);
    if (errno == ENOSYS || errno == EPERM) {
      return absl::UnimplementedError(
          absl::StrCat("pidfd_open is refused here (errno ", errno,
                       "): use Linux 5.4 or later and a seccomp profile that allows pidfd_open"));
    }
    return absl::ErrnoToStatus(errno, absl::StrCat("pidfd_open of process ", identity.pid));
  }
  // Only after the pidfd pins the process: if the times agree now, the pidfd is of the process that was
  // meant. (Were it reaped and its pid reused in between, the times differ, and it is dead.)
  absl::StatusOr<ProcessStat> stat = ReadProcessStat(identity.pid);
  if (!stat.ok()) return stat.status();
  if (stat->start_ticks != identity.start_ticks) return Gone(identity.pid);
  return fd;
}

absl::StatusOr<bool> PollReadable(int fd, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - SteadyNow();
    // Rounded up, so that a poll does not end just short of the deadline and spin.
    const int64_t millis = absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)));
    pollfd p{fd, POLLIN, 0};
    const int rc = ::poll(
        &p, 1,
        deadline == absl::InfiniteFuture() ? -1 : static_cast<int>(std::clamp<int64_t>(millis, 0, INT_MAX)));
    if (rc > 0) return true;
    if (rc < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    if (rc == 0 && SteadyNow() >= deadline) return false;
  }
}

bool IsAlive(const ProcessIdentity& identity) {
  absl::StatusOr<UniqueFd> fd = OpenPidfd(identity);
  if (!fd.ok()) return !absl::IsNotFound(fd.status()) && !absl::IsInvalidArgument(fd.status());
  absl::StatusOr<bool> dead = PollReadable(fd->get(), absl::InfinitePast());
  return !dead.ok() || !*dead;
}

absl::Status KillAndWait(const ProcessIdentity& identity, absl::Time deadline) {
  absl::StatusOr<UniqueFd> fd = OpenPidfd(identity);
  if (absl::IsNotFound(fd.status())) return absl::OkStatus();
  if (!fd.ok()) return fd.status();
  if (::syscall(SYS_pidfd_send_signal, fd->get(), SIGKILL, nullptr, 0) != 0) {
    if (errno == ESRCH) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot kill process ", identity.pid));
  }
  absl::StatusOr<bool> dead = PollReadable(fd->get(), deadline);
  if (!dead.ok()) return dead.status();
  if (*dead) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      "process ", identity.pid, " was killed but has not ended: it hangs in the kernel (see /proc/",
      identity.pid, "/stack)"));
}

}  // namespace sherd::runtime

#include "runtime/process_identity.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sherd::runtime {
namespace {

absl::Status Gone(pid_t pid) { return absl::NotFoundError(absl::StrCat("no process ", pid, " runs here")); }

// Field 22 of /proc/PID/stat. The second field, the program's name, may hold spaces and parentheses, so
// fields are counted from the last ')'.
absl::StatusOr<uint64_t> StartTicks(pid_t pid) {
  const std::string path = absl::StrCat("/proc/", pid, "/stat");
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return errno == ENOENT ? Gone(pid) : absl::ErrnoToStatus(errno, path);
  char buffer[2048];
  const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
  if (n < 0) return errno == ESRCH ? Gone(pid) : absl::ErrnoToStatus(errno, path);
  const absl::string_view text(buffer, static_cast<size_t>(n));
  const size_t close = text.rfind(')');
  constexpr int kStartTimeAfterName = 20;  // field 22; the state, field 3, is index 1 after the split
  if (close != absl::string_view::npos) {
    const std::vector<absl::string_view> fields = absl::StrSplit(text.substr(close + 1), ' ');
    uint64_t ticks;
    if (fields.size() > kStartTimeAfterName && absl::SimpleAtoi(fields[kStartTimeAfterName], &ticks))
      return ticks;
  }
  return absl::InternalError(absl::StrCat(path, " does not look like Linux's: ", text));
}

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
  absl::StatusOr<uint64_t> ticks = StartTicks(pid);
  if (!ticks.ok()) return ticks.status();
  return ProcessIdentity{pid, *ticks};
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
  absl::StatusOr<uint64_t> ticks = StartTicks(identity.pid);
  if (!ticks.ok()) return ticks.status();
  if (*ticks != identity.start_ticks) return Gone(identity.pid);
  return fd;
}

absl::StatusOr<bool> PollReadable(int fd, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
    // Rounded up, so that a poll does not end just short of the deadline and spin.
    const int64_t millis = absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)));
    pollfd p{fd, POLLIN, 0};
    const int rc = ::poll(
        &p, 1,
        deadline == absl::InfiniteFuture() ? -1 : static_cast<int>(std::clamp<int64_t>(millis, 0, INT_MAX)));
    if (rc > 0) return true;
    if (rc < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    if (rc == 0 && absl::Now() >= deadline) return false;
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

#include "runtime/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/clock.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace sherd::runtime {
namespace {

// What went wrong between fork and exec, sent to the parent through a pipe that exec closes.
enum class Stage : int { kSetup, kDirectory, kExec };
struct Failure {
  Stage stage;
  int error;
};

// All the child needs, made before the fork: afterwards nothing may allocate or lock, since another thread of
// the parent may have held the locks of malloc.
struct Plan {
  std::vector<char*> argv;
  std::vector<char*> env;
  std::vector<std::string> programs;  // candidates, in the order of PATH
  const char* directory = nullptr;
  int in = -1, out = -1, err = -1;
  int report = -1;
  pid_t parent = 0;
  bool own_group = false;
  int death_signal = 0;
};

[[noreturn]] void Fail(const Plan& plan, Stage stage, int error) {
  const Failure failure{stage, error};
  (void)!::write(plan.report, &failure, sizeof(failure));
  ::_exit(127);
}

// In the child; async-signal-safe calls only.
[[noreturn]] void Become(const Plan& plan) {
  if (plan.own_group) ::setpgid(0, 0);
  if (plan.death_signal != 0) {
    if (::prctl(PR_SET_PDEATHSIG, plan.death_signal) != 0) Fail(plan, Stage::kSetup, errno);
    // The parent may have died before that took effect.
    if (::getppid() != plan.parent) ::_exit(127);
  }
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // None of the sources is 0..2 (see MoveUp), so no dup2 overwrites one that is still needed.
  if (plan.in >= 0 && ::dup2(plan.in, STDIN_FILENO) < 0) Fail(plan, Stage::kSetup, errno);
  if (plan.out >= 0 && ::dup2(plan.out, STDOUT_FILENO) < 0) Fail(plan, Stage::kSetup, errno);
  if (plan.err >= 0 && ::dup2(plan.err, STDERR_FILENO) < 0) Fail(plan, Stage::kSetup, errno);
  if (plan.directory != nullptr && ::chdir(plan.directory) != 0) Fail(plan, Stage::kDirectory, errno);
  int error = ENOENT;
  for (const std::string& program : plan.programs) {
    ::execve(program.c_str(), plan.argv.data(), plan.env.data());
    if (errno != ENOENT && errno != ENOTDIR) error = errno;
  }
  Fail(plan, Stage::kExec, error);
}

std::vector<std::string> Environment(const ChildProcess::Options& options) {
  std::vector<std::string> env;
  auto names = [&](absl::string_view entry, absl::string_view name) {
    return absl::StartsWith(entry, name) && entry.size() > name.size() && entry[name.size()] == '=';
  };
  for (char** e = environ; e != nullptr && *e != nullptr; ++e) {
    const absl::string_view entry = *e;
    bool keep = true;
    for (const std::string& name : options.unset_env) keep = keep && !names(entry, name);
    for (const auto& [name, value] : options.set_env) keep = keep && !names(entry, name);
    if (keep) env.emplace_back(entry);
  }
  for (const auto& [name, value] : options.set_env) env.push_back(absl::StrCat(name, "=", value));
  return env;
}

std::vector<std::string> Programs(const std::string& name) {
  if (absl::StrContains(name, '/')) return {name};
  const char* path = ::getenv("PATH");
  std::vector<std::string> out;
  for (absl::string_view dir : absl::StrSplit(path == nullptr ? "/usr/local/bin:/usr/bin:/bin" : path, ':')) {
    out.push_back(dir.empty() ? name : absl::StrCat(dir, "/", name));
  }
  return out;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (std::string& s : strings) out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

// Above 2, so that putting streams in their places overwrites no other. (A parent may have been started with
// 0..2 closed.)
absl::StatusOr<UniqueFd> MoveUp(int fd) {
  UniqueFd low(fd);
  if (!low.ok()) return absl::ErrnoToStatus(errno, "cannot open a stream of a child process");
  if (low.get() > 2) return low;
  UniqueFd high(::fcntl(low.get(), F_DUPFD_CLOEXEC, 3));
  if (!high.ok()) return absl::ErrnoToStatus(errno, "cannot open a stream of a child process");
  return high;
}

// The child's end of a stream (not ok() for kInherit) and, for a pipe, the parent's.
struct Ends {
  UniqueFd child, parent;
};

absl::StatusOr<Ends> OpenStream(const ChildProcess::Stream& stream) {
  Ends ends;
  absl::StatusOr<UniqueFd> child;
  switch (stream.kind) {
    case ChildProcess::Stream::Kind::kInherit:
      return ends;
    case ChildProcess::Stream::Kind::kNull:
      child = MoveUp(::open("/dev/null", O_WRONLY | O_CLOEXEC));
      break;
    case ChildProcess::Stream::Kind::kFile: {
      const int fd = ::open(stream.path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
      if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", stream.path));
      child = MoveUp(fd);
      break;
    }
    case ChildProcess::Stream::Kind::kPipe: {
      int fds[2];
      if (::pipe2(fds, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
      ends.parent.Reset(fds[0]);
      child = MoveUp(fds[1]);
      break;
    }
  }
  if (!child.ok()) return child.status();
  ends.child = std::move(*child);
  return ends;
}

absl::Status Explain(const Failure& failure, const ChildProcess::Options& options) {
  switch (failure.stage) {
    case Stage::kDirectory:
      return absl::ErrnoToStatus(failure.error, absl::StrCat("cannot start ", options.argv[0],
                                                             " in directory ", options.working_directory));
    case Stage::kExec:
      return absl::ErrnoToStatus(failure.error, absl::StrCat("cannot run ", options.argv[0]));
    case Stage::kSetup:
      break;
  }
  return absl::ErrnoToStatus(failure.error, absl::StrCat("cannot prepare the process of ", options.argv[0]));
}

void Reap(pid_t pid) {
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

// Reads until exec closes the other end; true when the child reported a failure instead.
bool ReadFailure(int fd, Failure* failure) {
  ssize_t n;
  do {
    n = ::read(fd, failure, sizeof(*failure));
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(sizeof(*failure));
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (!signaled) return absl::StrCat("exit ", code);
  const char* name = ::sigabbrev_np(code);
  return absl::StrCat("killed by signal ", code, name == nullptr ? "" : absl::StrCat(" (", name, ")"));
}

absl::StatusOr<ChildProcess> ChildProcess::Spawn(const Options& options) {
  if (options.argv.empty() || options.argv[0].empty()) {
    return absl::InvalidArgumentError("no program to run was given");
  }
  absl::StatusOr<UniqueFd> in = MoveUp(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!in.ok()) return in.status();
  absl::StatusOr<Ends> out = OpenStream(options.stdout_stream);
  if (!out.ok()) return out.status();
  absl::StatusOr<Ends> err = OpenStream(options.stderr_stream);
  if (!err.ok()) return err.status();
  absl::StatusOr<Ends> report = OpenStream({Stream::Kind::kPipe, ""});
  if (!report.ok()) return report.status();

  std::vector<std::string> argv = options.argv, env = Environment(options);
  Plan plan;
  plan.argv = Pointers(argv);
  plan.env = Pointers(env);
  plan.programs = Programs(options.argv[0]);
  if (!options.working_directory.empty()) plan.directory = options.working_directory.c_str();
  plan.in = in->get();
  plan.out = out->child.get();
  plan.err = err->child.get();
  plan.report = report->child.get();
  plan.parent = ::getpid();
  plan.own_group = options.own_process_group;
  plan.death_signal = options.parent_death_signal;

  // All signals wait over the fork: no handler of this process may run in the child.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) Become(plan);
  const int fork_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return absl::ErrnoToStatus(fork_error, "fork");
  report->child.Reset();
  Failure failure;
  if (ReadFailure(report->parent.get(), &failure)) {
    Reap(pid);
    return Explain(failure, options);
  }
  // Not reaped yet, so the pid is still the child's.
  ChildProcess child;
  absl::StatusOr<ProcessIdentity> identity = Identify(pid);
  if (identity.ok()) child.pidfd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!child.pidfd_.ok()) {
    const absl::Status why = identity.ok() ? absl::ErrnoToStatus(errno, "pidfd_open") : identity.status();
    ::kill(pid, SIGKILL);
    Reap(pid);
    return why;
  }
  child.identity_ = *identity;
  child.own_group_ = options.own_process_group;
  child.stdout_pipe_ = std::move(out->parent);
  child.stderr_pipe_ = std::move(err->parent);
  return child;
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  ChildProcess old(std::move(*this));
  identity_ = other.identity_;
  own_group_ = other.own_group_;
  ended_ = other.ended_;
  pidfd_ = std::move(other.pidfd_);
  stdout_pipe_ = std::move(other.stdout_pipe_);
  stderr_pipe_ = std::move(other.stderr_pipe_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (!pidfd_.ok() || ended_.has_value()) return;
  Signal(SIGKILL).IgnoreError();
  Wait(absl::InfiniteFuture()).IgnoreError();
}

absl::Status ChildProcess::Signal(int signal) {
  if (!pidfd_.ok() || ended_.has_value()) return absl::OkStatus();
  // Until it is reaped neither its pid nor its group's number can be anyone else's.
  if (::kill(own_group_ ? -identity_.pid : identity_.pid, signal) == 0 || errno == ESRCH)
    return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot signal process ", identity_.pid));
}

absl::StatusOr<ExitStatus> ChildProcess::Wait(absl::Time deadline) {
  if (ended_.has_value()) return *ended_;
  if (!pidfd_.ok()) return absl::FailedPreconditionError("this process was moved away");
  absl::StatusOr<bool> over = PollReadable(pidfd_.get(), deadline);
  if (!over.ok()) return over.status();
  if (!*over)
    return absl::DeadlineExceededError(absl::StrCat("process ", identity_.pid, " is still running"));
  // Before it is reaped, while its number is surely its group's.
  if (own_group_) ::kill(-identity_.pid, SIGKILL);
  siginfo_t info = {};
  int rc;
  do {
    rc = ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd_.get()), &info, WEXITED);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot wait for process ", identity_.pid));
  ended_ = ExitStatus{info.si_code != CLD_EXITED, info.si_status};
  return *ended_;
}

absl::StatusOr<ExitStatus> ChildProcess::Terminate(absl::Duration grace) {
  absl::Status signalled = Signal(SIGTERM);
  if (!signalled.ok()) return signalled;
  absl::StatusOr<ExitStatus> ended = Wait(SteadyNow() + grace);
  if (!absl::IsDeadlineExceeded(ended.status())) return ended;
  signalled = Signal(SIGKILL);
  if (!signalled.ok()) return signalled;
  return Wait(absl::InfiniteFuture());
}

}  // namespace sherd::runtime

// Programs started, watched and ended by a supervisor.
//
//   ChildProcess::Options options;
//   options.argv = {"./train_gpt", "--steps", "100"};
//   options.set_env = {{"SHERD_RANK", "0"}};
//   absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(options);
//   absl::StatusOr<ExitStatus> exit = child->Wait(absl::InfiniteFuture());
//   std::cerr << exit->ToString();                    // "exit 3", "killed by signal 9 (KILL)"
//
// Nothing is left behind: destruction kills a child that still runs, and reaps it; and the kernel kills it
// when the thread that spawned it ends (so spawn from a thread that lives as long as the supervisor, such as
// main's).
#ifndef SHERD_RUNTIME_CHILD_PROCESS_H_
#define SHERD_RUNTIME_CHILD_PROCESS_H_

#include <signal.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/process_identity.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

// How a process ended.
struct ExitStatus {
  bool signaled = false;
  // The exit status, or the signal that killed it.
  int code = 0;

  bool success() const { return !signaled && code == 0; }
  // "exit 3", "killed by signal 9 (KILL)".
  std::string ToString() const;
};

// Thread-compatible.
class ChildProcess {
 public:
  // Where a stream of the child goes.
  struct Stream {
    enum class Kind { kInherit, kFile, kPipe, kNull };
    Kind kind = Kind::kInherit;
    // kFile: appended to, created with mode 0600.
    std::string path;
  };

  struct Options {
    // The program, looked up in this process's PATH when it has no '/', and its arguments. Not empty.
    std::vector<std::string> argv;
    // Added to this process's environment, or replacing what is there.
    std::vector<std::pair<std::string, std::string>> set_env;
    std::vector<std::string> unset_env;
    // Empty: this process's.
    std::string working_directory;
    // Standard input is always /dev/null. If both name one file, or both are pipes, they keep apart; to merge
    // them, name one file: it is opened for appending.
    Stream stdout_stream;
    Stream stderr_stream;
    // A process group of its own: a Ctrl-C at the terminal does not reach it, Signal reaches its children
    // too, and what is left of the group when it ends is killed: forked helpers may hold memory and locks of
    // the job.
    bool own_process_group = true;
    // What the kernel sends it when the spawning thread ends; 0 for nothing.
    int parent_death_signal = SIGKILL;
  };

  // Starts a program. Returns when it runs, or with the reason why it does not:
  //   NOT_FOUND          no such program or working directory
  //   PERMISSION_DENIED  it may not be executed
  //   INVALID_ARGUMENT   argv is empty
  // Signal handlers and masks of this process do not pass on; nor do descriptors, all opened close-on-exec
  // here.
  static absl::StatusOr<ChildProcess> Spawn(const Options& options);

  ChildProcess(ChildProcess&&) = default;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  // Kills (its whole group if it has its own) and reaps it, if that was not done.
  ~ChildProcess();

  const ProcessIdentity& identity() const { return identity_; }

  // Sends a signal to the child, or to its group if it has its own. OK when it has ended already.
  absl::Status Signal(int signal);

  // Waits for its end and reaps it; the same answer from then on. DEADLINE_EXCEEDED while it runs on. With
  // absl::InfinitePast() it only looks.
  absl::StatusOr<ExitStatus> Wait(absl::Time deadline);

  // Asks it to end (SIGTERM), kills it after `grace`, and reaps it.
  absl::StatusOr<ExitStatus> Terminate(absl::Duration grace);

  // Polls readable once it has ended. Owned by this object.
  int pidfd() const { return pidfd_.get(); }

  // The reading ends of kPipe streams; not ok() otherwise. The caller reads them, or takes them away.
  UniqueFd& stdout_pipe() { return stdout_pipe_; }
  UniqueFd& stderr_pipe() { return stderr_pipe_; }

 private:
  ChildProcess() = default;

  ProcessIdentity identity_;
  bool own_group_ = false;
  std::optional<ExitStatus> ended_;
  UniqueFd pidfd_;
  UniqueFd stdout_pipe_;
  UniqueFd stderr_pipe_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_CHILD_PROCESS_H_

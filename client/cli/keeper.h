// A process that outlives a supervisor by a moment and takes away what a kill -9 of it would leave: what runs
// in its children's process groups, and the job's directory.
//
//   absl::StatusOr<Keeper> keeper = Keeper::Start();   // first thing: it forks, so before there are threads
//   keeper->GuardDirectory(job_dir.path());
//   keeper->GuardGroup(child_pid);
//   ...
//   keeper->DropGroup(child_pid);
//   keeper->Dismiss();                                  // all is tidy: it just ends
//
// (The kernel kills the children themselves when the supervisor dies, see runtime/child_process.h, but not
// their children.) Thread-compatible.
#ifndef SHERD_CLIENT_CLI_KEEPER_H_
#define SHERD_CLIENT_CLI_KEEPER_H_

#include <sys/types.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

class Keeper {
 public:
  // REQUIRES: this process has one thread.
  static absl::StatusOr<Keeper> Start();
  Keeper(Keeper&& other) noexcept : pipe_(std::move(other.pipe_)), pid_(std::exchange(other.pid_, 0)) {}
  Keeper& operator=(Keeper&&) = delete;
  // Dismisses.
  ~Keeper();

  void GuardDirectory(const std::string& path);
  void GuardGroup(pid_t group);
  void DropGroup(pid_t group);
  // Waits until it has ended. May be repeated.
  void Dismiss();

 private:
  Keeper(runtime::UniqueFd pipe, pid_t pid) : pipe_(std::move(pipe)), pid_(pid) {}
  void Send(const std::string& message);

  runtime::UniqueFd pipe_;
  pid_t pid_ = 0;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_KEEPER_H_

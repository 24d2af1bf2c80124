// Asks a job for fewer trainers, on a thread of its own, and tells an event loop how it went.
//
//   ResizeCaller caller(job_dir);
//   caller.Ask(2);
//   poll(caller.fd()) ... if (std::optional<absl::Status> done = caller.Take()) ...
//
// Gives up the step in hand, which waits for a trainer that does not come back. Goes to whichever server of
// the job's directory answers. Thread-compatible.
#ifndef SHERD_CLIENT_CLI_RESIZE_CALLER_H_
#define SHERD_CLIENT_CLI_RESIZE_CALLER_H_

#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "client/rpc/job_client.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

class ResizeCaller {
 public:
  explicit ResizeCaller(std::string job_dir);
  // Does not wait for an answer.
  ~ResizeCaller();
  ResizeCaller(const ResizeCaller&) = delete;
  ResizeCaller& operator=(const ResizeCaller&) = delete;

  // So many trainers. One question at a time: a newer one takes the place of one that was not put yet.
  void Ask(int trainers);
  // Polls readable when Take() has something.
  int fd() const { return wake_.get(); }
  // How the last question ended, once.
  std::optional<absl::Status> Take();

 private:
  void Run();
  absl::Status Call(int trainers);

  const std::string job_dir_;
  const runtime::UniqueFd wake_;
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  int asked_ ABSL_GUARDED_BY(mu_) = 0;  // 0: nothing
  rpc::JobClient* client_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::optional<absl::Status> answer_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_RESIZE_CALLER_H_

// Asks each server of a job on this host, again and again, whether it is there, and tells an event loop for
// how long one has not answered: so that a stopped server is noticed although it is the one that all others
// ask.
//
//   SilenceWatch watch(job_dir, "s");
//   poll(watch.fd()) ... for (auto [server, lasts] : watch.Take()) ...
//
// Thread-compatible.
#ifndef SHERD_CLIENT_CLI_SILENCE_WATCH_H_
#define SHERD_CLIENT_CLI_SILENCE_WATCH_H_

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "client/rpc/job_client.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

class SilenceWatch {
 public:
  // `prefix`: of the ids of the servers that are watched.
  SilenceWatch(std::string job_dir, std::string prefix);
  ~SilenceWatch();
  SilenceWatch(const SilenceWatch&) = delete;
  SilenceWatch& operator=(const SilenceWatch&) = delete;

  // Polls readable when Take() has something.
  int fd() const { return wake_.get(); }
  // Numbers of the servers whose socket is there and which did not answer when last asked, and for how long.
  std::vector<std::pair<int, absl::Duration>> Take();

 private:
  struct Server {
    std::unique_ptr<rpc::JobClient> client;
    absl::Time silent_since =
        absl::InfiniteFuture();  // when it was first asked in vain; not since it answered
  };
  void Run();
  // Asks all that are there once.
  std::vector<std::pair<int, absl::Duration>> AskAll();
  bool Ask(Server* server);

  const std::string job_dir_, prefix_;
  const runtime::UniqueFd wake_;
  std::map<std::string, Server> servers_;  // the thread's, by endpoint
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  rpc::JobClient* asking_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::vector<std::pair<int, absl::Duration>> silent_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_SILENCE_WATCH_H_

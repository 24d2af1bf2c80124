// The `sherd` program run by a test, with what it writes.
//
//   SherdProcess run({"run", "-n", "2", "--job", job, "--", "/bin/true"});
//   EXPECT_EQ(run.Wait().status, 0);
//
//   run.WaitForLine("up");            // on its stdout
#ifndef SHERD_TESTS_CLUSTER_SHERD_PROCESS_H_
#define SHERD_TESTS_CLUSTER_SHERD_PROCESS_H_

#include <list>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "runtime/child_process.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::tests {

class SherdProcess {
 public:
  struct Result {
    int status = -1;  // minus the signal if it was killed
    std::string out, err;
  };

  explicit SherdProcess(std::vector<std::string> arguments,
                        std::vector<std::pair<std::string, std::string>> environment = {});
  // Kills it if it still runs.
  ~SherdProcess();
  SherdProcess(const SherdProcess&) = delete;
  SherdProcess& operator=(const SherdProcess&) = delete;

  int pid() const { return child_->identity().pid; }
  // To this process alone, not to its children.
  void Signal(int signal);

  // Waits until its end and that of its output.
  Result Wait();

  // Waits for a line of stdout that starts with `start` and was not returned before; "" if the output ends or
  // half a minute passes without one, which fails the test.
  std::string WaitForLine(const std::string& start);
  // The same for stderr, of a line that contains `part`.
  std::string WaitForError(const std::string& part);

 private:
  struct Stream {
    runtime::UniqueFd fd;
    std::thread reader;
    std::string text;
    std::list<std::string> lines;  // that were not returned yet
    bool ended = false;
  };
  void Read(int fd, Stream SherdProcess::*stream);
  template <typename Matches>
  std::string NextLine(Stream SherdProcess::*stream, Matches matches, const std::string& what);

  std::optional<runtime::ChildProcess> child_;
  runtime::Mutex mu_;
  runtime::CondVar more_;
  Stream out_ ABSL_GUARDED_BY(mu_);
  Stream err_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::tests

#endif  // SHERD_TESTS_CLUSTER_SHERD_PROCESS_H_

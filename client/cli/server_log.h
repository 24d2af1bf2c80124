// What one server printed: the last lines, for when it fails, and all of it in a file if one is named.
// Thread-safe.
#ifndef SHERD_CLIENT_CLI_SERVER_LOG_H_
#define SHERD_CLIENT_CLI_SERVER_LOG_H_

#include <deque>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

class ServerLog {
 public:
  // Appends to the file at `path`; empty: keeps the last lines alone.
  static absl::StatusOr<std::unique_ptr<ServerLog>> Open(const std::string& path);

  // A process starts to print on `streams` descriptors.
  void Begin(int streams);
  // One of them has ended.
  void End();
  void Add(absl::string_view line);

  // The last lines, at most 20; waits for the streams' ends first, at most `limit`.
  std::vector<std::string> LastLines(absl::Duration limit);

 private:
  explicit ServerLog(runtime::UniqueFd file) : file_(std::move(file)) {}

  const runtime::UniqueFd file_;
  runtime::Mutex mu_;
  runtime::CondVar ended_;
  int open_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_SERVER_LOG_H_

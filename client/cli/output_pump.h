// Carries the output of many children, line by line, to where it belongs, on one thread of its own.
//
//   auto pump = OutputPump::Start();
//   (*pump)->Add(std::move(child.stdout_pipe()), [](absl::string_view line) { Write(1, "[1] " + line); },
//   nullptr);
//   ...
//   (*pump)->Finish(absl::Seconds(1));
//
// A line that is longer than 64 KiB comes in pieces. Thread-safe; sinks run on the pump's thread, one at a
// time.
#ifndef SHERD_CLIENT_CLI_OUTPUT_PUMP_H_
#define SHERD_CLIENT_CLI_OUTPUT_PUMP_H_

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

// Writes all of it, or as much as anybody reads. Blocks.
void WriteAll(int fd, absl::string_view text);

class OutputPump {
 public:
  // Gets a line with its newline. (One is added to what a child leaves without.)
  using Sink = std::function<void(absl::string_view line)>;

  static absl::StatusOr<std::unique_ptr<OutputPump>> Start();
  // As Finish(zero).
  ~OutputPump();
  OutputPump(const OutputPump&) = delete;
  OutputPump& operator=(const OutputPump&) = delete;

  // Reads `fd` to its end; then calls `end`, if there is one. A descriptor that is not ok() has ended.
  void Add(runtime::UniqueFd fd, Sink sink, std::function<void()> end);

  // Waits until all have ended, at most `limit` (a grandchild may keep one open), and stops. Nothing is
  // called afterwards. Once only.
  void Finish(absl::Duration limit);

 private:
  struct Source {
    runtime::UniqueFd fd;
    Sink sink;
    std::function<void()> end;
    std::string rest;  // of a line
  };

  explicit OutputPump(runtime::UniqueFd wake) : wake_(std::move(wake)) {}
  void Run();
  // False at the end.
  static bool Read(Source* source);

  const runtime::UniqueFd wake_;
  runtime::Mutex mu_;
  std::list<Source> added_ ABSL_GUARDED_BY(mu_);
  absl::Time finish_by_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_OUTPUT_PUMP_H_

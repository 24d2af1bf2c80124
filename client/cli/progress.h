// What a command shows while it works, on stderr: a line that changes in place when that is a terminal,
// nothing otherwise; and notes, which are always shown. Thread-compatible.
#ifndef SHERD_CLIENT_CLI_PROGRESS_H_
#define SHERD_CLIENT_CLI_PROGRESS_H_

#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/clock.h"

namespace sherd::cli {

class Progress {
 public:
  // `terminal`: whether stderr is one.
  explicit Progress(bool terminal) : terminal_(terminal) {}
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // True when a line would be shown now: at most ten times in a second.
  bool Due() const { return terminal_ && runtime::SteadyNow() >= next_; }
  void Show(absl::string_view line) {
    if (!Due()) return;
    next_ = runtime::SteadyNow() + absl::Milliseconds(100);
    std::fprintf(stderr, "\r\033[K%.*s", static_cast<int>(line.size()), line.data());
    std::fflush(stderr);
    shown_ = true;
  }
  void Note(absl::string_view line) {
    Clear();
    std::fprintf(stderr, "sherd: %.*s\n", static_cast<int>(line.size()), line.data());
  }
  void Clear() {
    if (shown_) std::fputs("\r\033[K", stderr);
    shown_ = false;
  }

 private:
  const bool terminal_;
  bool shown_ = false;
  absl::Time next_ = absl::InfinitePast();
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PROGRESS_H_

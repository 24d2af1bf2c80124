// What a person sees while a model trains: one line that redraws itself on a terminal, a line now and then
// elsewhere.
//
//   Progress progress(stderr, isatty(STDERR_FILENO), /*total_steps=*/400);
//   progress.Show(record, runtime::SteadyNow());      // after every step; draws at most ten times a second
//   progress.Finish();                       // before anything else is printed
//
//   train [########------------] 160/400  loss 2.3141  5230 tokens/s  epoch 1  world 2  eta 0:49
#ifndef SHERD_CLIENT_EXAMPLES_PROGRESS_H_
#define SHERD_CLIENT_EXAMPLES_PROGRESS_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/time/time.h"
#include "client/examples/step_log.h"

namespace sherd::examples {

// Thread-compatible.
class Progress {
 public:
  // Writes to `out`, which must outlive this object. `total_steps` is the last step's number.
  Progress(FILE* out, bool terminal, uint64_t total_steps)
      : out_(out), terminal_(terminal), total_steps_(total_steps) {}

  // On a terminal redraws the line unless that happened in the last 100 ms (the last step is always drawn).
  // Elsewhere prints about twenty lines in all: the first step seen, then each 1/20 of the way.
  void Show(const StepRecord& record, absl::Time now);

  // Ends the line being redrawn, so that other output starts on one of its own. Show may follow.
  void Finish();

  // The line without its bar, for `record` at the smoothed speed seen so far.
  std::string Line(const StepRecord& record) const;

 private:
  std::string Bar(uint64_t step) const;

  FILE* const out_;
  const bool terminal_;
  const uint64_t total_steps_;
  double ms_per_step_ = 0;      // smoothed
  double tokens_per_step_ = 0;  // of the newest step
  bool seen_any_ = false;
  bool line_open_ = false;
  absl::Time drawn_ = absl::InfinitePast();
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_PROGRESS_H_

#include "client/examples/progress.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sherd::examples {
namespace {

constexpr int kBarCells = 20;
constexpr uint64_t kPlainLines = 20;
constexpr double kSmoothing = 0.9;  // weight of the past: about the last ten steps

// "0:49", "12:03", "3:20:00".
std::string Clock(double seconds) {
  const int64_t s = std::llround(std::max(0.0, seconds));
  if (s >= 3600) return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

}  // namespace

void Progress::Show(const StepRecord& record, absl::Time now) {
  tokens_per_step_ = record.step == 0 ? 0 : static_cast<double>(record.tokens) / record.step;
  ms_per_step_ = seen_any_ ? kSmoothing * ms_per_step_ + (1 - kSmoothing) * record.step_ms : record.step_ms;
  const bool first = !seen_any_;
  seen_any_ = true;
  const bool last = record.step >= total_steps_;
  if (terminal_) {
    if (!first && !last && now - drawn_ < absl::Milliseconds(100)) return;
    drawn_ = now;
    line_open_ = true;
    // \r and erase-to-end: a shorter line leaves nothing of a longer one behind.
    absl::FPrintF(out_, "\rtrain %s %s\x1b[K", Bar(record.step), Line(record));
  } else {
    const uint64_t stride = std::max<uint64_t>(1, total_steps_ / kPlainLines);
    if (!first && !last && record.step % stride != 0) return;
    absl::FPrintF(out_, "train %s\n", Line(record));
  }
  fflush(out_);
}

void Progress::Finish() {
  if (!line_open_) return;
  line_open_ = false;
  fputc('\n', out_);
  fflush(out_);
}

std::string Progress::Line(const StepRecord& record) const {
  const double seconds = ms_per_step_ / 1000;
  const uint64_t left = record.step < total_steps_ ? total_steps_ - record.step : 0;
  return absl::StrFormat("%d/%d  loss %.4f%s  %.0f tokens/s  epoch %d  world %d  eta %s", record.step,
                         total_steps_, record.loss, record.skipped ? " (skipped)" : "",
                         seconds > 0 ? tokens_per_step_ / seconds : 0.0, record.epoch, record.world_size,
                         Clock(left * seconds));
}

std::string Progress::Bar(uint64_t step) const {
  const int full = total_steps_ == 0
                       ? kBarCells
                       : static_cast<int>(std::min(step, total_steps_) * kBarCells / total_steps_);
  return absl::StrCat("[", std::string(full, '#'), std::string(kBarCells - full, '-'), "]");
}

}  // namespace sherd::examples

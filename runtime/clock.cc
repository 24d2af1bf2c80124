#include "runtime/clock.h"

#include <time.h>

#include <algorithm>

#include "absl/time/clock.h"

namespace sherd::runtime {

absl::Time SystemClock::Now() const { return absl::Now(); }

absl::Duration SystemClock::Monotonic() const {
  timespec ts;
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return absl::DurationFromTimespec(ts);
}

absl::Time VirtualClock::Now() const {
  MutexLock lock(mu_);
  return now_;
}

absl::Duration VirtualClock::Monotonic() const {
  MutexLock lock(mu_);
  return monotonic_;
}

void VirtualClock::Advance(absl::Duration step) {
  step = std::max(step, absl::ZeroDuration());
  MutexLock lock(mu_);
  now_ += step;
  monotonic_ += step;
}

void VirtualClock::SetTimeOfDay(absl::Time now) {
  MutexLock lock(mu_);
  now_ = now;
}

}  // namespace sherd::runtime

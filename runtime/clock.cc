#include "runtime/clock.h"

#include <time.h>

#include <algorithm>

#include "absl/time/clock.h"

namespace sherd::runtime {

int64_t MonotonicNanos() {
  timespec ts;
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1000000000 + ts.tv_nsec;
}

absl::Time SteadyNow() { return absl::UnixEpoch() + absl::Nanoseconds(MonotonicNanos()); }

std::chrono::system_clock::time_point ToTimeOfDay(absl::Time steady) {
  // Saturates: absl's infinite future is system_clock's last moment.
  return absl::ToChronoTime(steady - SteadyNow() + absl::Now());
}

absl::Time FromTimeOfDay(std::chrono::system_clock::time_point at) {
  if (at == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(at) - absl::Now() + SteadyNow();
}

absl::Time SystemClock::Now() const { return absl::Now(); }

absl::Duration SystemClock::Monotonic() const { return absl::Nanoseconds(MonotonicNanos()); }

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

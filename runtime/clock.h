// Time as a dependency: whoever needs it takes a Clock*, so that tests and simulations decide what time it
// is.
//
//   const absl::Duration start = clock->Monotonic();
//   ...
//   if (clock->Monotonic() - start > timeout) ...
#ifndef SHERD_RUNTIME_CLOCK_H_
#define SHERD_RUNTIME_CLOCK_H_

#include <chrono>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

// Nanoseconds of CLOCK_MONOTONIC, the same for all processes of a host: for stamps in shared memory and for
// figures, where no test has to decide what time it is.
int64_t MonotonicNanos();

// The same as a point in time, to be compared with its own like alone: for how long something has lasted, and
// whether to give up or to kill for it. A change of the time of day does not change it.
absl::Time SteadyNow();

// A point of SteadyNow() by the time of day as it is set now, and back: for libraries whose deadlines are
// system_clock's (gRPC, which counts on steadily once a call has begun). Infinite ones stay so.
std::chrono::system_clock::time_point ToTimeOfDay(absl::Time steady);
absl::Time FromTimeOfDay(std::chrono::system_clock::time_point at);

// Thread-safe. Never blocks.
class Clock {
 public:
  virtual ~Clock() = default;
  // The time of day: for people and for stamps that leave the host. May jump either way.
  virtual absl::Time Now() const = 0;
  // Time since some fixed moment: for deadlines and durations. Never goes back; the same for all processes of
  // a host.
  virtual absl::Duration Monotonic() const = 0;
};

// The system's clocks (CLOCK_REALTIME, CLOCK_MONOTONIC).
class SystemClock final : public Clock {
 public:
  absl::Time Now() const override;
  absl::Duration Monotonic() const override;
};

// Stands still until it is moved.
class VirtualClock final : public Clock {
 public:
  explicit VirtualClock(absl::Time start = absl::UnixEpoch()) : now_(start) {}
  absl::Time Now() const override;
  absl::Duration Monotonic() const override;
  // Both clocks go on by `step`; a negative one counts as zero.
  void Advance(absl::Duration step);
  // The time of day alone jumps, as when an administrator sets it.
  void SetTimeOfDay(absl::Time now);

 private:
  mutable Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_);
  absl::Duration monotonic_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_CLOCK_H_

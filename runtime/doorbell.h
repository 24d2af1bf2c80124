// A doorbell between processes: a word in shared memory that one side rings and the other waits on.
//
//   auto* bell = control.as<DoorbellWord>();            // zeroed memory is a doorbell that was never rung
//
//   // The side that waits: the ticket first, then the condition.
//   for (;;) {
//     uint32_t ticket = bell->Listen();
//     if (WorkIsThere()) break;
//     if (bell->Wait(ticket, absl::Seconds(1), spin) == WaitResult::kTimeout) ...;
//   }
//
//   // The side that rings: the work first, then the bell.
//   PublishWork();
//   bell->Ring();
//
// Why no ring is lost. A waiter W raises `waiters_` and only then compares `rings_` with its ticket (the
// kernel compares once more, atomically with going to sleep). A ringer R raises `rings_` and only then looks
// at `waiters_`. All four are seq_cst, so in their single order either R's look comes after W's raise, and R
// wakes W (or W's compare in the kernel, which excludes R's wake, sees the new number); or W's compare comes
// after R's raise and sees the new number. The work itself is published by the release of Ring's increment
// and seen by the acquire in Listen.
//
// A process killed while it waits leaves `waiters_` too high for ever. That is harmless: every later ring
// costs one system call that wakes nobody. It can never be too low.
//
// Ring never blocks and, with nobody waiting, makes no system call. Thread-safe and process-safe. Several may
// wait; a ring wakes all. Rings between two looks merge into one. A ticket must be used before 2^32 further
// rings.
#ifndef SHERD_RUNTIME_DOORBELL_H_
#define SHERD_RUNTIME_DOORBELL_H_

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "absl/time/time.h"

namespace sherd::runtime {

enum class WaitResult { kRung, kTimeout };

// How long to burn a core before sleeping. A spin saves a wake-up (microseconds) when the other side runs on
// another core; when it waits for this very core, spinning only keeps it from running.
struct SpinPolicy {
  absl::Duration limit = absl::ZeroDuration();

  static SpinPolicy None() { return {}; }
  static SpinPolicy Bounded(absl::Duration limit) { return {limit}; }
  // Spins only where every busy thread of the job on this host can have a core of its own.
  static SpinPolicy ForHost(int busy_threads, int cores, absl::Duration limit = absl::Microseconds(30)) {
    return busy_threads <= cores ? Bounded(limit) : None();
  }
};

// Cores this process may run on (its affinity mask), >= 1.
int UsableCores();

class alignas(64) DoorbellWord {
 public:
  DoorbellWord() = default;
  DoorbellWord(const DoorbellWord&) = delete;
  DoorbellWord& operator=(const DoorbellWord&) = delete;

  // Call after publishing what the waiter looks for.
  void Ring();

  // A ticket for Wait. Take it before looking at the condition.
  uint32_t Listen() const { return rings_.load(std::memory_order_seq_cst); }

  // Returns kRung once the bell was rung after `ticket` was taken (at once if it was already), kTimeout after
  // `timeout`. Zero or negative `timeout` only looks; InfiniteDuration() waits without end.
  WaitResult Wait(uint32_t ticket, absl::Duration timeout, SpinPolicy spin);

  // Processes and threads that wait, and those that were killed at it. For tests and status.
  uint32_t waiters() const { return waiters_.load(std::memory_order_seq_cst); }

 private:
  std::atomic<uint32_t> rings_{0};
  std::atomic<uint32_t> waiters_{0};
  // The rest of the cache line stays empty: neighbours would slow the spin.
};
static_assert(sizeof(DoorbellWord) == 64 && std::is_standard_layout_v<DoorbellWord>);
static_assert(std::atomic<uint32_t>::is_always_lock_free, "a doorbell stands in shared memory");

// What this process did at all doorbells since it started. Each ring that made a system call and each wait
// that slept is a wake-up across cores, tens of microseconds: benchmarks report them.
struct DoorbellCounters {
  uint64_t rings = 0;
  uint64_t ring_syscalls = 0;
  uint64_t waits = 0;
  uint64_t waits_slept = 0;
};
DoorbellCounters ReadDoorbellCounters();

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_DOORBELL_H_

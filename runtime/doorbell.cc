#include "runtime/doorbell.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "runtime/clock.h"

namespace sherd::runtime {
namespace {

// A line of their own: they are touched on every ring.
struct alignas(64) Counters {
  std::atomic<uint64_t> rings{0};
  std::atomic<uint64_t> ring_syscalls{0};
  std::atomic<uint64_t> waits{0};
  std::atomic<uint64_t> waits_slept{0};
};
Counters counters;

void Count(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

absl::Duration MonotonicNow() { return absl::Nanoseconds(MonotonicNanos()); }

// No FUTEX_PRIVATE_FLAG: the other side is another process.
long Futex(const std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* deadline) {
  return ::syscall(SYS_futex, word, operation, value, deadline, nullptr, FUTEX_BITSET_MATCH_ANY);
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int UsableCores() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
}

void DoorbellWord::Ring() {
  Count(counters.rings);
  rings_.fetch_add(1, std::memory_order_seq_cst);
  if (waiters_.load(std::memory_order_seq_cst) == 0) return;
  Count(counters.ring_syscalls);
  Futex(&rings_, FUTEX_WAKE, INT_MAX, nullptr);
}

WaitResult DoorbellWord::Wait(uint32_t ticket, absl::Duration timeout, SpinPolicy spin) {
  Count(counters.waits);
  if (Listen() != ticket) return WaitResult::kRung;
  if (timeout <= absl::ZeroDuration()) return WaitResult::kTimeout;
  const absl::Duration start = MonotonicNow();
  const absl::Duration spin_end = start + std::min(spin.limit, timeout);
  // The clock is read every few dozen pauses: a read costs about as much as one.
  while (spin.limit > absl::ZeroDuration() && MonotonicNow() < spin_end) {
    for (int i = 0; i < 32; ++i) {
      if (Listen() != ticket) return WaitResult::kRung;
      Pause();
    }
  }
  // An absolute deadline, so that signals do not lengthen the wait.
  const absl::Duration deadline = start + timeout;
  const timespec ts = absl::ToTimespec(deadline);
  const timespec* const until = deadline == absl::InfiniteDuration() ? nullptr : &ts;
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  WaitResult result = WaitResult::kRung;
  bool slept = false;
  while (Listen() == ticket) {
    const long rc = Futex(&rings_, FUTEX_WAIT_BITSET, ticket, until);
    if (rc == 0 || errno != EAGAIN) slept = true;
    if (rc != 0 && errno == ETIMEDOUT) {
      if (Listen() == ticket) result = WaitResult::kTimeout;
      break;
    }
  }
  waiters_.fetch_sub(1, std::memory_order_seq_cst);
  if (slept) Count(counters.waits_slept);
  return result;
}

DoorbellCounters ReadDoorbellCounters() {
  return {
      counters.rings.load(std::memory_order_relaxed), counters.ring_syscalls.load(std::memory_order_relaxed),
      counters.waits.load(std::memory_order_relaxed), counters.waits_slept.load(std::memory_order_relaxed)};
}

}  // namespace sherd::runtime

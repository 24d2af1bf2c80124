#include "client/torch/stray_write.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <atomic>

namespace sherd::torch {
namespace {

// Read by the signal handler: published whole, never freed (a handler may be reading the one before).
std::atomic<const std::vector<GuardedRange>*> g_ranges{nullptr};
struct sigaction g_previous;

void Put(const char* text, size_t n) {
  // Nothing can be done about a closed stderr.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, n);
}

void OnFault(int signal, siginfo_t* info, void*) {
  const std::vector<GuardedRange>* ranges = g_ranges.load(std::memory_order_acquire);
  const char* at = static_cast<const char*>(info->si_addr);
  for (const GuardedRange& r : *ranges) {
    const char* begin = static_cast<const char*>(r.begin);
    if (at < begin || at >= begin + r.bytes) continue;
    static constexpr char kBefore[] = "sherd: a store into parameter ";
    static constexpr char kAfter[] =
        ", which is a read-only view of shared memory; change it through ZeroOptimizer::Write\n";
    Put(kBefore, sizeof kBefore - 1);
    Put(r.name.data(), r.name.size());
    Put(kAfter, sizeof kAfter - 1);
    break;
  }
  // As it would have been without us: the store is tried again and faults again.
  sigaction(signal, &g_previous, nullptr);
}

}  // namespace

void GuardAgainstStrayWrites(std::vector<GuardedRange> ranges) {
  const bool first = g_ranges.exchange(new std::vector<GuardedRange>(std::move(ranges)),
                                       std::memory_order_acq_rel) == nullptr;
  if (!first) return;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &g_previous);
}

}  // namespace sherd::torch

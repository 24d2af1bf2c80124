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
    const bool released = r.readable != nullptr && r.readable->load(std::memory_order_relaxed) == 0;
    static constexpr char kReleased[] = "sherd: a use of parameter ";
    static constexpr char kGather[] =
        " while it is released; stage 3 gathers it for the Sharded blocks that use it and inside "
        "ZeroOptimizer::Gather\n";
    static constexpr char kStore[] = "sherd: a store into parameter ";
    static constexpr char kWrite[] =
        ", which is a read-only view of shared memory; change it through ZeroOptimizer::Write\n";
    released ? Put(kReleased, sizeof kReleased - 1) : Put(kStore, sizeof kStore - 1);
    Put(r.name.data(), r.name.size());
    released ? Put(kGather, sizeof kGather - 1) : Put(kWrite, sizeof kWrite - 1);
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

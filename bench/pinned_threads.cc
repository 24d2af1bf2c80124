#include "bench/pinned_threads.h"

#include <pthread.h>
#include <sched.h>

namespace sherd {
namespace bench {
namespace {

void PinTo(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  int skip = index % CPU_COUNT(&allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || skip-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
    return;
  }
}

}  // namespace

PinnedThreads::PinnedThreads(int count) {
  for (int k = 0; k < count; ++k) threads_.emplace_back([this, k] { Loop(k); });
}

PinnedThreads::~PinnedThreads() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  for (std::thread& t : threads_) t.join();
}

void PinnedThreads::Run(const std::function<void(int)>& work) {
  absl::MutexLock lock(&mu_);
  work_ = &work;
  running_ = count();
  ++round_;
  const auto all_done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return running_ == 0; };
  mu_.Await(absl::Condition(&all_done));
}

void PinnedThreads::Loop(int thread) {
  PinTo(thread);
  for (uint64_t seen = 0;;) {
    const std::function<void(int)>* work;
    {
      absl::MutexLock lock(&mu_);
      const auto called = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || round_ != seen; };
      mu_.Await(absl::Condition(&called));
      if (stop_) return;
      seen = round_;
      work = work_;
    }
    (*work)(thread);
    absl::MutexLock lock(&mu_);
    --running_;
  }
}

}  // namespace bench
}  // namespace sherd

#include "bench/pinned_threads.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

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
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& t : threads_) t.join();
}

double PinnedThreads::Run(const std::function<void(int)>& work) {
  std::unique_lock<std::mutex> lock(mu_);
  work_ = &work;
  running_ = count();
  ++round_;
  const auto start = std::chrono::steady_clock::now();
  changed_.notify_all();
  changed_.wait(lock, [this] { return running_ == 0; });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void PinnedThreads::Loop(int thread) {
  PinTo(thread);
  std::unique_lock<std::mutex> lock(mu_);
  for (uint64_t seen = 0;;) {
    changed_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    const std::function<void(int)>& work = *work_;
    lock.unlock();
    work(thread);
    lock.lock();
    if (--running_ == 0) changed_.notify_all();
  }
}

}  // namespace bench
}  // namespace sherd

// Threads that stay on their cores, for benchmarks.
//
//   PinnedThreads threads(2);
//   double seconds = threads.Run([&](int thread) { Work(thread); });   // all start together; until the last
//   ends
#ifndef SHERD_BENCH_PINNED_THREADS_H_
#define SHERD_BENCH_PINNED_THREADS_H_

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace sherd {
namespace bench {

// Thread k runs on the k-th core this process may use (round robin if there are fewer). Thread-compatible.
class PinnedThreads {
 public:
  explicit PinnedThreads(int count);
  ~PinnedThreads();
  PinnedThreads(const PinnedThreads&) = delete;
  PinnedThreads& operator=(const PinnedThreads&) = delete;

  int count() const { return static_cast<int>(threads_.size()); }

  // Calls work(0) ... work(count - 1), one on each thread, and blocks until all have returned.
  void Run(const std::function<void(int)>& work);

 private:
  void Loop(int thread);

  absl::Mutex mu_;
  const std::function<void(int)>* work_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t round_ ABSL_GUARDED_BY(mu_) = 0;
  int running_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace bench
}  // namespace sherd

#endif  // SHERD_BENCH_PINNED_THREADS_H_

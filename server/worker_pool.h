// A few threads that share out indexed pieces of work. One engine, one pool.
//
//   WorkerPool pool(2);
//   pool.Run(chunks, [&](int worker, int64_t i) { ... });       // returns when all are done
//
// The calling thread is worker 0; with one worker nothing is ever handed over.
#ifndef SHERD_SERVER_WORKER_POOL_H_
#define SHERD_SERVER_WORKER_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sherd::server {

class WorkerPool {
 public:
  using Work = std::function<void(int worker, int64_t index)>;

  // REQUIRES: workers >= 1.
  explicit WorkerPool(int workers);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int workers() const { return static_cast<int>(threads_.size()) + 1; }
  // Calls work(worker, i) once for each i in [0, count), from all workers, and returns when every call has. A
  // worker makes one call at a time. Not re-entrant, one caller at a time.
  void Run(int64_t count, const Work& work);

 private:
  void Loop(int worker);
  void Drain(int worker);

  std::mutex mu_;
  std::condition_variable wake_, done_;
  uint64_t generation_ = 0;  // guarded by mu_
  int running_ = 0;          // guarded by mu_
  bool stop_ = false;        // guarded by mu_
  const Work* work_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> threads_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_WORKER_POOL_H_

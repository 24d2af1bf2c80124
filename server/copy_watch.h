// Compares the copies of the job's state every so many steps (server/state_copies.h), in whichever server is
// the coordinator, and says what differs in its log and metrics.
//
//   CopyWatch watch(1000, &context);
//   ... watch.last().differences
//
// Thread-safe. Construction begins, destruction ends it.
#ifndef SHERD_SERVER_COPY_WATCH_H_
#define SHERD_SERVER_COPY_WATCH_H_

#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "runtime/mutex.h"
#include "server/service_context.h"

namespace sherd::server {

class CopyWatch {
 public:
  // Of the last comparison that this server made.
  struct Found {
    uint64_t step = 0;  // 0: none yet
    int differences = 0;
  };

  // At the steps that `every` divides, or soon after. `context` is borrowed, and has its node. REQUIRES:
  // every > 0.
  CopyWatch(uint64_t every, const ServiceContext* context);
  ~CopyWatch();
  CopyWatch(const CopyWatch&) = delete;
  CopyWatch& operator=(const CopyWatch&) = delete;

  Found last() const;

 private:
  void Run();
  void Look();
  bool stopped() const;

  const uint64_t every_;
  const ServiceContext* const context_;
  uint64_t next_ = 0;     // the thread's: a step; 0 while another server is the coordinator
  bool useless_ = false;  // the thread's: there is one copy
  mutable runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  Found last_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_COPY_WATCH_H_

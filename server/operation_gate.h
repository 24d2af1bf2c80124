// Lets one long operation run at a time, and makes it safe to repeat: whoever calls with the token of one
// that runs, or ran, gets its outcome.
//
//   OperationGate<Result> gate;
//   absl::StatusOr<Result> r = gate.Run(token, deadline, "save", [&] { return DoIt(); });
//
// What failed is forgotten: the same token tries again. Thread-safe; blocks; no lock is held while the
// operation runs.
#ifndef SHERD_SERVER_OPERATION_GATE_H_
#define SHERD_SERVER_OPERATION_GATE_H_

#include <algorithm>
#include <deque>
#include <functional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"

namespace sherd::server {

template <typename Result>
class OperationGate {
 public:
  // DEADLINE_EXCEEDED: another one ran all the time. `what` is for the message.
  absl::StatusOr<Result> Run(const std::string& token, absl::Time deadline, const char* what,
                             const std::function<absl::StatusOr<Result>()>& operation) {
    {
      runtime::MutexLock lock(mu_);
      for (;;) {
        for (const auto& [t, result] : done_) {
          if (t == token) return result;
        }
        if (!running_) break;
        const absl::Time now = runtime::SteadyNow();
        if (now >= deadline)
          return absl::DeadlineExceededError(absl::StrCat("another ", what, " was under way all the time"));
        changed_.WaitFor(mu_, std::min(deadline - now, absl::Seconds(1)));
      }
      running_ = true;
    }
    absl::StatusOr<Result> result = operation();
    runtime::MutexLock lock(mu_);
    running_ = false;
    if (result.ok()) done_.emplace_back(token, *result);
    if (done_.size() > 16) done_.pop_front();
    changed_.SignalAll();
    return result;
  }

 private:
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::pair<std::string, Result>> done_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_OPERATION_GATE_H_

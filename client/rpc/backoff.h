// How long to wait before trying again, and when to stop. Pure: time is an argument.
//
//   Backoff backoff({}, now);
//   while (failed) {
//     absl::optional<absl::Duration> wait = backoff.Next(now, jitter);
//     if (!wait) give up;  else sleep for *wait;
//   }
//
// Thread-compatible.
#ifndef SHERD_CLIENT_RPC_BACKOFF_H_
#define SHERD_CLIENT_RPC_BACKOFF_H_

#include <algorithm>

#include "absl/time/time.h"
#include "absl/types/optional.h"

namespace sherd::rpc {

class Backoff {
 public:
  struct Policy {
    absl::Duration first = absl::Milliseconds(20);  // before the second try; each wait is twice the last
    absl::Duration longest = absl::Milliseconds(500);
    absl::Duration patience = absl::Seconds(30);  // from the first try, or the last success, to the last one
  };

  Backoff(const Policy& policy, absl::Time now) : policy_(policy), wait_(policy.first), since_(now) {}

  // After a try that went well: patience starts anew.
  void Succeeded(absl::Time now) {
    wait_ = policy_.first;
    since_ = now;
  }

  // After a try that failed: how long to wait before the next, or nullopt when patience has run out. `jitter`
  // is chosen at random in [0, 1): the wait is shortened by up to half with it, so that many who lost one
  // server do not come back together. The last wait ends where patience does.
  absl::optional<absl::Duration> Next(absl::Time now, double jitter) {
    const absl::Duration left = since_ + policy_.patience - now;
    if (left <= absl::ZeroDuration()) return absl::nullopt;
    const absl::Duration wait = wait_ * (1 - jitter / 2);
    wait_ = std::min(wait_ * 2, policy_.longest);
    return std::min(wait, left);
  }

 private:
  const Policy policy_;
  absl::Duration wait_;
  absl::Time since_;
};

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_BACKOFF_H_

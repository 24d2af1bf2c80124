// Lets `rate` bytes through in a second, evenly: at most a quarter of a second's worth at once.
//
//   TokenBucket bucket(rate);                       // 0: no limit
//   absl::SleepFor(bucket.Spend(n));  send(n);
//
// Thread-compatible.
#ifndef SHERD_SERVER_TOKEN_BUCKET_H_
#define SHERD_SERVER_TOKEN_BUCKET_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/clock.h"

namespace sherd::server {

// The least rate that a peer may ask for: below it a stream could hold what it reads for ever.
inline constexpr uint64_t kLeastRate = 64 << 10;

// Of a request's rate_bytes_per_second; 0 is no limit. INVALID_ARGUMENT if it is less than the least.
inline absl::Status CheckRate(uint64_t rate) {
  if (rate == 0 || rate >= kLeastRate) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rate_bytes_per_second=", rate, " is below ", kLeastRate, ", the least; 0 is no limit"));
}

class TokenBucket {
 public:
  explicit TokenBucket(uint64_t rate) : rate_(rate), at_(runtime::SteadyNow()) {}
  // How long to wait before `bytes` more may go.
  absl::Duration Spend(uint64_t bytes) {
    if (rate_ == 0) return absl::ZeroDuration();
    const absl::Time now = runtime::SteadyNow();
    at_ = std::max(at_, now - absl::Milliseconds(250));
    at_ += absl::Seconds(static_cast<double>(bytes) / static_cast<double>(rate_));
    return at_ - now;
  }
  // A piece that goes at once, so that a slow rate is even: a multiple of 4096 up to `most`.
  uint64_t Piece(uint64_t most) const {
    return rate_ == 0 ? most : std::clamp<uint64_t>(rate_ / 16 / 4096 * 4096, 4096, most);
  }

 private:
  const uint64_t rate_;
  absl::Time at_;  // all that was sent is paid for at this time
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_TOKEN_BUCKET_H_

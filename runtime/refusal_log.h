// Says which refusals are worth a line, so that a stranger who tries a thousand times fills no log. Pure:
// time is an argument.
//
//   if (absl::optional<int64_t> untold = log.Refused("10.0.0.9", now)) print it, with *untold;
//
// Remembers kAddresses addresses at most; when there are more, those not remembered count as one.
// Thread-compatible.
#ifndef SHERD_RUNTIME_REFUSAL_LOG_H_
#define SHERD_RUNTIME_REFUSAL_LOG_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"

namespace sherd::runtime {

class RefusalLog {
 public:
  static constexpr size_t kAddresses = 64;

  explicit RefusalLog(absl::Duration every = absl::Seconds(10)) : every_(every) {}

  // `address` was refused. The number of its refusals since the last that was told when this one is to be
  // told, else nullopt.
  absl::optional<int64_t> Refused(absl::string_view address, absl::Duration now) {
    auto at = known_.find(std::string(address));
    if (at == known_.end() && known_.size() >= kAddresses) Expire(now);
    if (at == known_.end()) {
      at = known_.emplace(known_.size() < kAddresses ? std::string(address) : std::string(), Known{}).first;
    }
    Known& known = at->second;
    if (known.told && now - known.last < every_) {
      ++known.untold;
      return absl::nullopt;
    }
    const int64_t untold = known.untold;
    known = {true, now, 0};
    return untold;
  }

 private:
  struct Known {
    bool told = false;
    absl::Duration last;
    int64_t untold = 0;
  };
  void Expire(absl::Duration now) {
    for (auto it = known_.begin(); it != known_.end();) {
      it = now - it->second.last >= every_ && it->second.untold == 0 ? known_.erase(it) : std::next(it);
    }
  }

  const absl::Duration every_;
  std::map<std::string, Known> known_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_REFUSAL_LOG_H_

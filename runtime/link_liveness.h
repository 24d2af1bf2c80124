// When a peer that says nothing is suspect, and when to say something oneself. Pure: time is an argument.
//
//   LinkLiveness liveness({}, now);
//   liveness.Heard(now);                       // bytes came
//   liveness.Sent(now);                        // bytes went
//   LinkLiveness::Due due = liveness.Tick(now);
//   if (due.heartbeat) send one;   if (due.changed) tell whoever asked;   come back at due.next
//
// A suspect is only named: it is heard again as soon as a byte comes. `now` is a monotonic clock's.
// Thread-compatible.
#ifndef SHERD_RUNTIME_LINK_LIVENESS_H_
#define SHERD_RUNTIME_LINK_LIVENESS_H_

#include <algorithm>

#include "absl/time/time.h"

namespace sherd::runtime {

class LinkLiveness {
 public:
  struct Policy {
    absl::Duration heartbeat = absl::Milliseconds(250);       // after so long without sending
    absl::Duration suspect_after = absl::Milliseconds(1500);  // of silence
  };
  struct Due {
    bool heartbeat = false;  // send one now, and say Sent()
    bool changed = false;    // suspect() is not what it was at the last Tick
    absl::Duration next;     // the latest moment to Tick again
  };

  LinkLiveness(const Policy& policy, absl::Duration now) : policy_(policy), heard_(now), sent_(now) {}

  // Never goes back.
  void Heard(absl::Duration at) { heard_ = std::max(heard_, at); }
  void Sent(absl::Duration at) { sent_ = std::max(sent_, at); }

  Due Tick(absl::Duration now) {
    Due due;
    const bool silent = silence(now) >= policy_.suspect_after;
    due.changed = silent != suspect_;
    suspect_ = silent;
    due.heartbeat = now - sent_ >= policy_.heartbeat;
    // A heartbeat that is due now is followed by one a period later, whether it could be sent or not.
    due.next = due.heartbeat ? now + policy_.heartbeat : sent_ + policy_.heartbeat;
    if (!silent) due.next = std::min(due.next, heard_ + policy_.suspect_after);
    return due;
  }

  bool suspect() const { return suspect_; }
  absl::Duration silence(absl::Duration now) const { return std::max(now - heard_, absl::ZeroDuration()); }

 private:
  const Policy policy_;
  absl::Duration heard_, sent_;
  bool suspect_ = false;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_LIVENESS_H_

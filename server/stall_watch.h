// Finds members that live but do not move while others wait for them.
//
//   StallWatch watch;
//   for (const StallWatch::Stalled& s : watch.Look(memory, now)) ...     // a few times a second
//
// A trainer is waited for when some other one has recorded its part of the step in hand and this one has not,
// or wants a unit consumed that this one has not delivered; an owner when all trainers have done either, and
// it has not PREPARED or consumed. Only looks at shared records.
// Thread-compatible.
#ifndef SHERD_SERVER_STALL_WATCH_H_
#define SHERD_SERVER_STALL_WATCH_H_

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/job_memory.h"

namespace sherd::server {

class StallWatch {
 public:
  // Without progress for this long while others wait: stalled.
  static constexpr absl::Duration kPatience = absl::Seconds(2);

  struct Stalled {
    bool trainer = false;
    int place = 0;  // rank or slot
    absl::Duration since;
  };

  std::vector<Stalled> Look(runtime::JobMemory& memory, absl::Time now);

 private:
  struct Seen {
    uint64_t signature = 0;
    absl::Time since;  // unchanged
  };
  std::map<std::pair<bool, int>, Seen> seen_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_STALL_WATCH_H_

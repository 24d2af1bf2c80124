// Finds members that live but do not move while others wait for them, or that are stopped.
//
//   StallWatch watch;
//   for (const StallWatch::Stalled& s : watch.Look(memory, SteadyNow())) ...     // a few times a second
//
// A trainer is waited for when some other one has recorded its part of the step in hand and this one has not,
// or wants a unit consumed that this one has not delivered; an owner when all trainers have done either, and
// it has not PREPARED or consumed. A process of this host that a signal or a debugger has stopped is one that
// does not move, whether anybody waits yet or not. Only looks at shared records and /proc.
// Thread-compatible.
#ifndef SHERD_SERVER_STALL_WATCH_H_
#define SHERD_SERVER_STALL_WATCH_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/job_memory.h"

namespace sherd::server {

class StallWatch {
 public:
  // Without progress for this long while others wait: stalled. With the time between two looks it is told
  // within 2 s.
  static constexpr absl::Duration kPatience = absl::Milliseconds(1500);

  struct Stalled {
    bool trainer = false;
    int place = 0;  // rank or slot
    absl::Duration since;
    bool stopped = false;  // by a signal or a debugger
    Step step;             // in hand
    int unit = -1;         // that it is to deliver or to sum next; -1: it has done all of them

    // "gradients of unit 3, step 17", "its record of step 17", ...: what others wait for.
    std::string Missing() const;
  };

  // `now` as of runtime::SteadyNow().
  std::vector<Stalled> Look(runtime::JobMemory& memory, absl::Time now);

 private:
  // A part of a unit that some rank wants consumed, in the middle of a step.
  struct Want {
    int unit;
    Mark mark;
  };
  // The step in hand as it stands now.
  struct View {
    Step current;
    runtime::Assignment owners;
    std::vector<bool> recorded;  // by rank
    int records = 0;
    std::vector<Want> wants;
  };
  struct Seen {
    uint64_t signature = 0;
    absl::Time since;  // unchanged
  };

  static bool Read(runtime::JobMemory& memory, View* view);
  void LookAtTrainer(runtime::JobMemory& memory, const View& view, int rank, absl::Time now,
                     std::vector<Stalled>* stalled);
  void LookAtOwner(runtime::JobMemory& memory, const View& view, int slot, absl::Time now,
                   std::vector<Stalled>* stalled);
  // Adds `who` if it has not moved for long enough while it was waited for.
  void Judge(Stalled who, uint64_t signature, bool waited_for, absl::Time now, std::vector<Stalled>* stalled);

  std::map<std::pair<bool, int>, Seen> seen_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_STALL_WATCH_H_

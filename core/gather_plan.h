// Which units of a stage-3 model a host of several has gathered, and which it starts to gather or lets go of:
// once for all its ranks, by what each of them wants. Pure decisions; server/host_gather.h carries them out.
//
//   GatherPlan plan({1000, 2000, 0}, /*max_live=*/2000);     // elements of units; 0: never gathered
//   GatherPlan::Effects now = plan.Look(ranks);              // free now.free, then start now.start
//   plan.Arrived(1);                                         // all that others own of unit 1 is here
//
// A unit that a rank needs now is gathered whatever else is. One that is wanted ahead of its use waits until
// it fits into max_live. What is started is so in the order in which it is going to be needed. A unit that a
// rank has let go of stays for as long as another rank, which has used it less often since values changed, is
// going to want it, unless something that is needed now has no room: so ranks that are not in step gather it
// once, and with room for it each unit comes as often as one rank uses it.
//
// A host that is told to *keep* (zero_hpz_partition_size) lets go of nothing: what it has gathered stays
// until it is wanted with newer values, and then they come in its place. So each unit comes once for all uses
// of a step, and max_live has no meaning, as in the end all is here.
//
// Thread-compatible. Look takes O(units x ranks).
#ifndef SHERD_CORE_GATHER_PLAN_H_
#define SHERD_CORE_GATHER_PLAN_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "core/types.h"

namespace sherd {

// Which values a unit has: those that step `step` computes with, after `import` imports; grows with both.
class UnitValues {
 public:
  static constexpr uint64_t Of(Step step, uint64_t import) { return step.value() << 8 | (import & 0xff); }
  static constexpr uint64_t StepOf(uint64_t values) { return values >> 8; }
};

// What one rank wants of one unit: a word of shared memory, and another that is stored before it.
struct UnitWant {
  enum How : uint32_t { kNot = 0, kAhead = 1, kNow = 2 };
  static constexpr uint32_t kMostTimes = (1 << 14) - 1;

  uint64_t values = 0;  // those that the rank wanted last
  uint32_t times = 0;   // it has wanted them; stops at kMostTimes
  How how = kNot;       // at this moment
  uint64_t turn = 0;    // the other word: grows with every want of the rank, in the order of need

  uint64_t word() const { return values << 16 | uint64_t{std::min(times, kMostTimes)} << 2 | how; }
  static UnitWant Of(uint64_t word) {
    return {word >> 16, static_cast<uint32_t>(word >> 2) & kMostTimes,
            static_cast<How>(std::min<uint64_t>(word & 3, kNow))};
  }
};

class GatherPlan {
 public:
  struct Rank {
    bool attached = false;
    uint64_t recorded = 0;        // the newest step that it has a STEP record of
    std::vector<UnitWant> wants;  // by unit
  };
  struct Start {
    int unit = 0;
    uint64_t values = 0;
  };
  struct Effects {
    std::vector<int> free;
    std::vector<Start> start;  // in this order
  };

  GatherPlan(std::vector<int64_t> elements, int64_t max_live, bool keep = false)
      : elements_(std::move(elements)),
        max_live_(keep ? std::numeric_limits<int64_t>::max() : max_live),
        keep_(keep),
        state_(elements_.size()) {}

  // The unit is here with these values: found so by a successor, or not freed because it is wanted again.
  void Found(int unit, uint64_t values);
  Effects Look(const std::vector<Rank>& ranks);
  // What Look started is here. Its values.
  uint64_t Arrived(int unit);

  bool coming(int unit) const { return state_[unit].at == kComing; }
  uint64_t values(int unit) const { return state_[unit].values; }
  // Elements of the units that are here or coming, and the most there ever were.
  int64_t live() const { return live_; }
  int64_t peak_live() const { return peak_live_; }

 private:
  enum At { kAway, kComing, kHere };
  struct State {
    At at = kAway;
    uint64_t values = 0;
  };
  // A rank will want the unit with these values, by how often others have.
  bool Expected(int unit, const std::vector<Rank>& ranks) const;
  void Free(int unit, Effects* effects);
  void Begin(int unit, uint64_t values, Effects* effects);

  const std::vector<int64_t> elements_;
  const int64_t max_live_;
  const bool keep_;
  std::vector<State> state_;
  int64_t live_ = 0, peak_live_ = 0;
};

}  // namespace sherd

#endif  // SHERD_CORE_GATHER_PLAN_H_

// When the units of a stage-3 model are gathered and released: pure decisions, by the order in which the last
// pass used them, within the limits that DeepSpeed's configuration names. Whoever has the memory carries them
// out (client/parameter_window.h).
//
//   PrefetchPlan plan({{1000, false}, {2000, false}, {50, true}}, PrefetchLimits());
//   plan.BeginPass(/*last=*/true);                   // a micro-batch: its forward and backward
//   PrefetchPlan::Effects now = plan.Use(0);         // release now.release, gather now.gather, which must be
//   ...                                              // there before 0 is used; start to gather now.prefetch
//   std::vector<int> gone = plan.Unuse(0);           // release these
//   std::vector<int> rest = plan.EndPass();
//
// The first pass records the order of uses. Later ones follow it; the first use that departs from it ends the
// following, and what is used from there on is recorded as the order to come. Ranks may differ in order, and
// passes too: an order that is wrong costs gathers, never a result.
//
// A unit is *live* while its memory is gathered. `peak_live` counts elements of live units beside persistent
// ones, which are always there. It passes max_live only when the units in use at one moment do.
//
// Thread-compatible. Calls take O(log) in what they look at, which ends at the reuse distance.
#ifndef SHERD_CORE_PREFETCH_PLAN_H_
#define SHERD_CORE_PREFETCH_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sherd {

// In elements; names and defaults are those of zero_optimization.
struct PrefetchLimits {
  // stage3_prefetch_bucket_size: gathered ahead of use and not used yet. A larger unit is gathered ahead when
  // it is the only one. 0: nothing is gathered ahead.
  int64_t prefetch_bucket = 50000000;
  // stage3_max_live_parameters: nothing is kept or gathered ahead beyond it.
  int64_t max_live = 1000000000;
  // stage3_max_reuse_distance: a unit stays if, by the recorded order, fewer elements than this are used
  // before it is used again.
  int64_t max_reuse_distance = 1000000000;
};

class PrefetchPlan {
 public:
  struct Unit {
    int64_t elements = 0;
    bool persistent = false;  // live for ever: never gathered or released
  };
  // Units to let go of, the unit to gather or -1, and units to gather ahead, in this order.
  struct Effects {
    std::vector<int> release;
    int gather = -1;
    std::vector<int> prefetch;
  };
  struct Stats {
    int64_t uses = 0;      // of units that are not persistent
    int64_t gathers = 0;   // on demand or ahead
    int64_t hits = 0;      // uses of a unit that had been gathered ahead
    int64_t kept = 0;      // uses of a unit that had stayed since its last use, or was in use
    int64_t releases = 0;  // one for each gather, sooner or later
    int64_t reorders = 0;  // passes that departed from the order of the one before
    int64_t peak_live = 0;
  };

  PrefetchPlan(std::vector<Unit> units, PrefetchLimits limits);

  // Between BeginPass and EndPass uses are a pass's; others (an evaluation) gather and release on demand.
  // `last`: values change after this pass, so nothing is kept beyond it.
  void BeginPass(bool last);
  Effects Use(int unit);
  // Ends one Use; uses of a unit nest. What is to be released, possibly nothing: REQUIRES: it is in use.
  std::vector<int> Unuse(int unit);
  // Units to release. Those in use stay. The next pass expects what this one did.
  std::vector<int> EndPass();

  bool live(int unit) const { return state_[unit].live || units_[unit].persistent; }
  bool in_use(int unit) const { return state_[unit].uses > 0; }
  // Elements live now, persistent ones not counted.
  int64_t live_elements() const { return live_; }
  const Stats& stats() const { return stats_; }
  // The order that the next pass, or the rest of this one, is expected to follow.
  const std::vector<int>& order() const { return order_; }

 private:
  struct State {
    int uses = 0;
    bool live = false;
    bool ahead = false;  // gathered ahead and not used since
    bool stale = false;  // in use since before its values changed
  };
  void Gather(int unit, bool ahead);
  void Release(int unit, std::vector<int>* out);
  // Moves along the recorded order, or records.
  void Follow(int unit);
  // Elements used before `unit` is used again, by the order from here on; -1: it is not, or farther than
  // `most`.
  int64_t Distance(int unit, int64_t most) const;
  bool following() const { return in_pass_ && !departed_ && !order_.empty(); }
  void MakeRoom(int64_t elements, std::vector<int>* release);
  void LookAhead(std::vector<int>* prefetch);

  const std::vector<Unit> units_;
  const PrefetchLimits limits_;
  std::vector<State> state_;
  std::vector<int> order_;     // of the pass before, and of this one as far as it was like it
  std::vector<int> recorded_;  // of this pass
  size_t at_ = 0;              // in order_: the use that comes next
  bool in_pass_ = false, last_ = true, departed_ = false;
  int64_t live_ = 0, ahead_ = 0;
  Stats stats_;
};

}  // namespace sherd

#endif  // SHERD_CORE_PREFETCH_PLAN_H_

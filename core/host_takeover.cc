#include "core/host_takeover.h"

#include <algorithm>

namespace sherd {

StepId OwnerProgress::InHand() const {
  const StepId next = done.NextStep();
  return rejected.step == next.step && !(rejected < next) ? rejected.NextAttempt() : next;
}

Takeover PlanTakeover(const std::vector<Survivor>& survivors) {
  Takeover plan;
  const OwnerProgress& first = survivors[0].own[0];
  plan.in_hand = first.InHand();
  bool level = true;
  for (const Survivor& s : survivors) {
    for (const OwnerProgress& o : s.own) {
      level &= o.boundary_done == first.boundary_done && o.InHand() == first.InHand();
      plan.in_hand = std::min(plan.in_hand, o.InHand());
    }
  }
  const Mark done = first.boundary_done;
  const uint32_t boundaries = done.id().step == plan.in_hand.step ? done.parts() : 0;
  const Mark next = Mark::Of(plan.in_hand, boundaries + 1);
  // Of each lost owner, what any survivor has.
  const size_t lost = survivors[0].lost.size();
  std::vector<bool> offered(lost, false);
  plan.has_prepared.assign(lost, false);
  // Who prepared without having offered the boundary never will.
  bool decidable = true;
  for (const Survivor& s : survivors) {
    for (size_t m = 0; m < s.lost.size(); ++m) {
      if (s.lost[m].prepared == std::optional<StepId>(plan.in_hand)) plan.has_prepared[m] = true;
      if (s.lost[m].offered == next) offered[m] = true;
    }
    for (const OwnerProgress& o : s.own) {
      const bool prepared = o.prepared == std::optional<StepId>(plan.in_hand);
      decidable &= !prepared || o.offered == next;
    }
  }
  const auto all = [](const std::vector<bool>& of) {
    return std::all_of(of.begin(), of.end(), [](bool has) { return has; });
  };
  const bool settled = level && !all(plan.has_prepared) && !(decidable && all(offered));
  plan.kind = settled ? Takeover::kGiveUp : Takeover::kTell;
  return plan;
}

}  // namespace sherd

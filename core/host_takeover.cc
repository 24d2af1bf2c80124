#include "core/host_takeover.h"

#include <algorithm>

namespace sherd {

StepId OwnerProgress::InHand() const {
  const StepId next = done.NextStep();
  return rejected.step == next.step && !(rejected < next) ? rejected.NextAttempt() : next;
}

Takeover PlanTakeover(const std::vector<Survivor>& survivors) {
  Takeover plan;
  plan.in_hand = survivors[0].own[0].InHand();
  for (const Survivor& s : survivors) {
    for (const OwnerProgress& o : s.own) plan.in_hand = std::min(plan.in_hand, o.InHand());
  }
  plan.has_prepared.assign(survivors[0].lost.size(), false);
  for (const Survivor& s : survivors) {
    for (size_t m = 0; m < s.lost.size(); ++m) {
      if (s.lost[m].prepared == std::optional<StepId>(plan.in_hand)) plan.has_prepared[m] = true;
    }
  }
  const bool all =
      std::all_of(plan.has_prepared.begin(), plan.has_prepared.end(), [](bool has) { return has; });
  plan.kind = all ? Takeover::kTell : Takeover::kGiveUp;
  return plan;
}

}  // namespace sherd

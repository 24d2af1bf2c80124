#include "core/gather_plan.h"

namespace sherd {

void GatherPlan::Found(int unit, uint64_t values) {
  State& s = state_[unit];
  if (s.at == kAway) live_ += elements_[unit];
  peak_live_ = std::max(peak_live_, live_);
  s = {kHere, values};
}

uint64_t GatherPlan::Arrived(int unit) {
  state_[unit].at = kHere;
  return state_[unit].values;
}

void GatherPlan::Free(int unit, Effects* effects) {
  state_[unit] = {};
  live_ -= elements_[unit];
  effects->free.push_back(unit);
}

void GatherPlan::Begin(int unit, uint64_t values, Effects* effects) {
  if (state_[unit].at == kAway) live_ += elements_[unit];
  peak_live_ = std::max(peak_live_, live_);
  state_[unit] = {kComing, values};
  effects->start.push_back({unit, values});
}

bool GatherPlan::Expected(int unit, const std::vector<Rank>& ranks) const {
  const uint64_t values = state_[unit].values;
  uint32_t most = 0;
  for (const Rank& r : ranks) {
    if (r.wants[unit].values == values) most = std::max(most, r.wants[unit].times);
  }
  return std::any_of(ranks.begin(), ranks.end(), [&](const Rank& r) {
    const UnitWant& w = r.wants[unit];
    const bool behind = w.values < values || (w.values == values && w.times < most);
    return r.attached && r.recorded < UnitValues::StepOf(values) && behind;
  });
}

GatherPlan::Effects GatherPlan::Look(const std::vector<Rank>& ranks) {
  Effects effects;
  std::vector<int> spare;  // here, and only expected to be wanted
  std::vector<Start> now, ahead;
  for (int u = 0; u < static_cast<int>(elements_.size()); ++u) {
    if (elements_[u] == 0) continue;
    Start wanted{u, 0};
    UnitWant::How how = UnitWant::kNot;
    for (const Rank& r : ranks) {
      if (r.wants[u].how == UnitWant::kNot) continue;
      how = std::max(how, r.wants[u].how);
      wanted.values = std::max(wanted.values, r.wants[u].values);
    }
    const State& s = state_[u];
    if (how == UnitWant::kNot) {
      // What is on its way would arrive in memory that was given back.
      if (s.at != kHere || keep_) continue;
      if (Expected(u, ranks)) {
        spare.push_back(u);
      } else {
        Free(u, &effects);
      }
    } else if (s.at == kAway) {
      (how == UnitWant::kNow ? now : ahead).push_back(wanted);
    } else if (s.values < wanted.values) {
      Begin(u, wanted.values, &effects);  // in its place
    }
  }
  for (const Start& s : now) {
    while (!spare.empty() && live_ + elements_[s.unit] > max_live_) {
      Free(spare.back(), &effects);
      spare.pop_back();
    }
    Begin(s.unit, s.values, &effects);
  }
  for (const Start& s : ahead) {
    if (live_ + elements_[s.unit] <= max_live_) Begin(s.unit, s.values, &effects);
  }
  return effects;
}

}  // namespace sherd

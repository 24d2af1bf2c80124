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
  struct Want {
    Start start;
    UnitWant::How how;
    uint64_t turn;
  };
  std::vector<Want> wants;
  for (int u = 0; u < static_cast<int>(elements_.size()); ++u) {
    if (elements_[u] == 0) continue;
    Want want{{u, 0}, UnitWant::kNot, std::numeric_limits<uint64_t>::max()};
    for (const Rank& r : ranks) {
      if (r.wants[u].how == UnitWant::kNot) continue;
      want.how = std::max(want.how, r.wants[u].how);
      want.start.values = std::max(want.start.values, r.wants[u].values);
      want.turn = std::min(want.turn, r.wants[u].turn);
    }
    const State& s = state_[u];
    if (want.how == UnitWant::kNot) {
      // What is on its way would arrive in memory that was given back.
      if (s.at != kHere || keep_) continue;
      if (Expected(u, ranks)) {
        spare.push_back(u);
      } else {
        Free(u, &effects);
      }
    } else if (s.at == kAway || s.values < want.start.values) {
      wants.push_back(want);
    }
  }
  std::stable_sort(wants.begin(), wants.end(), [](const Want& a, const Want& b) {
    return a.how != b.how ? a.how == UnitWant::kNow : a.turn < b.turn;
  });
  for (const Want& w : wants) {
    const int unit = w.start.unit;
    const bool in_place = state_[unit].at != kAway;
    const auto fits = [&] { return in_place || live_ + elements_[unit] <= max_live_; };
    while (w.how == UnitWant::kNow && !spare.empty() && !fits()) {
      Free(spare.back(), &effects);
      spare.pop_back();
    }
    if (w.how == UnitWant::kNow || fits()) Begin(unit, w.start.values, &effects);
  }
  return effects;
}

}  // namespace sherd

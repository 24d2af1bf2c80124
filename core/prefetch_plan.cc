#include "core/prefetch_plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/base/internal/raw_logging.h"

namespace sherd {

PrefetchPlan::PrefetchPlan(std::vector<Unit> units, PrefetchLimits limits)
    : units_(std::move(units)), limits_(limits), state_(units_.size()) {}

void PrefetchPlan::BeginPass(bool last) {
  in_pass_ = true;
  last_ = last;
  departed_ = false;
  at_ = 0;
  recorded_.clear();
}

void PrefetchPlan::Gather(int unit, bool ahead) {
  State& s = state_[unit];
  s.live = true;
  s.ahead = ahead;
  live_ += units_[unit].elements;
  if (ahead) ahead_ += units_[unit].elements;
  stats_.peak_live = std::max(stats_.peak_live, live_);
  ++stats_.gathers;
}

void PrefetchPlan::Release(int unit, std::vector<int>* out) {
  State& s = state_[unit];
  if (s.ahead) ahead_ -= units_[unit].elements;
  s.live = s.ahead = s.stale = false;
  live_ -= units_[unit].elements;
  ++stats_.releases;
  out->push_back(unit);
}

void PrefetchPlan::Follow(int unit) {
  if (!in_pass_) return;
  recorded_.push_back(unit);
  if (!following()) return;
  if (at_ < order_.size() && order_[at_] == unit) {
    ++at_;
    return;
  }
  departed_ = true;
  ++stats_.reorders;
}

int64_t PrefetchPlan::Distance(int unit, int64_t most) const {
  int64_t passed = 0;
  // Round the end, into the next pass, where that finds the same values.
  const size_t turns = order_.size() - at_ + (last_ ? 0 : at_);
  for (size_t i = 0; i < turns && passed < most; ++i) {
    const int next = order_[(at_ + i) % order_.size()];
    if (next == unit) return passed;
    if (!units_[next].persistent) passed += units_[next].elements;
  }
  return -1;
}

void PrefetchPlan::MakeRoom(int64_t elements, std::vector<int>* release) {
  while (live_ + elements > limits_.max_live) {
    int farthest = -1;
    int64_t most = -1;
    for (size_t u = 0; u < units_.size(); ++u) {
      if (!state_[u].live || state_[u].uses > 0) continue;
      int64_t distance = std::numeric_limits<int64_t>::max();
      if (following()) {
        const int64_t known = Distance(static_cast<int>(u), distance);
        if (known >= 0) distance = known;
      }
      if (distance > most) most = distance, farthest = static_cast<int>(u);
    }
    if (farthest < 0) return;
    Release(farthest, release);
  }
}

void PrefetchPlan::LookAhead(std::vector<int>* prefetch) {
  for (size_t i = at_; i < order_.size(); ++i) {
    const int next = order_[i];
    if (live(next)) continue;
    const int64_t n = units_[next].elements;
    const bool fits = ahead_ == 0 ? limits_.prefetch_bucket > 0 : ahead_ + n <= limits_.prefetch_bucket;
    if (!fits || live_ + n > limits_.max_live) return;
    Gather(next, /*ahead=*/true);
    prefetch->push_back(next);
  }
}

PrefetchPlan::Effects PrefetchPlan::Use(int unit) {
  Effects effects;
  if (units_[unit].persistent) {
    ++state_[unit].uses;
    return effects;
  }
  Follow(unit);
  State& s = state_[unit];
  ++stats_.uses;
  ++s.uses;
  if (!s.live) {
    MakeRoom(units_[unit].elements, &effects.release);
    Gather(unit, /*ahead=*/false);
    effects.gather = unit;
  } else if (s.ahead) {
    s.ahead = false;
    ahead_ -= units_[unit].elements;
    ++stats_.hits;
  } else {
    ++stats_.kept;
  }
  if (following()) LookAhead(&effects.prefetch);
  return effects;
}

std::vector<int> PrefetchPlan::Unuse(int unit) {
  std::vector<int> release;
  State& s = state_[unit];
  ABSL_RAW_CHECK(s.uses > 0, "a unit that is not in use");
  if (--s.uses > 0 || units_[unit].persistent) return release;
  const bool again =
      !s.stale && following() && live_ <= limits_.max_live && Distance(unit, limits_.max_reuse_distance) >= 0;
  if (!again) Release(unit, &release);
  return release;
}

std::vector<int> PrefetchPlan::EndPass() {
  std::vector<int> release;
  if (!in_pass_) return release;
  in_pass_ = false;
  // A pass that used nothing (a rank without samples) says nothing about the order. One that stopped early
  // keeps what it left out: a block skipped at the end comes back.
  const bool shorter = !departed_ && recorded_.size() < order_.size();
  if (!recorded_.empty() && !shorter) order_ = recorded_;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (!state_[u].live || !(last_ || state_[u].ahead)) continue;
    if (state_[u].uses == 0) {
      Release(static_cast<int>(u), &release);
    } else {
      state_[u].stale = true;
    }
  }
  return release;
}

}  // namespace sherd

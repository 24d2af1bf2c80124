#include "core/step_pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/verdict.h"

namespace sherd {

StepPipeline::StepPipeline(Config config, StepId done, Proposals decided, uint8_t rejected_attempts)
    : config_(std::move(config)),
      after_(done),
      hosts_(config_.host_ranks, config_.world_size),
      decided_(decided) {
  cut_.resize(hosts_.hosts());
  ranks_.resize(config_.world_size);
  owners_.resize(config_.servers);
  StepId next = done.NextStep();
  next.attempt = rejected_attempts;
  BeginStep(next);
}

void StepPipeline::BeginStep(StepId id) {
  id_ = id;
  phase_ = Phase::kReducing;
  for (RankState& r : ranks_) {
    r.delivered.assign(config_.owns.size(), 0);
    r.step.reset();
  }
  received_.assign(hosts_.hosts(), std::vector<uint16_t>(config_.owns.size(), 0));
  units_.assign(config_.owns.size(), UnitState{});
  steps_seen_ = 0;
  for (OwnerPage& o : owners_) o.prepared.reset();
  boundary_offered_ = boundary_deciding_ = changing_ranges_ = phase_asked_ = false;
}

void StepPipeline::OnDelivered(Rank rank, int unit, Mark delivered, std::vector<Effect>* out) {
  const uint32_t parts = delivered.PartsOf(id_);
  uint16_t& known = ranks_[rank.value()].delivered[unit];
  if (parts <= known) return;
  known = static_cast<uint16_t>(parts);
  TryReduce(unit, out);
}

void StepPipeline::OnReceived(int host, int unit, Mark received, std::vector<Effect>* out) {
  const uint32_t parts = received.PartsOf(id_);
  uint16_t& known = received_[host][unit];
  if (parts <= known) return;
  known = static_cast<uint16_t>(parts);
  TryReduce(unit, out);
}

StepPipeline::FromHost StepPipeline::PartOf(int host, int unit, int part) const {
  if (received_[host][unit] > part) return FromHost::kHere;
  for (int r = hosts_.first(host); r < hosts_.end(host); ++r) {
    if (!ranks_[r].step.has_value() || ranks_[r].delivered[unit] > part) return FromHost::kMayCome;
  }
  return FromHost::kNever;
}

void StepPipeline::OnTrainerStep(Rank rank, const TrainerStep& step, std::vector<Effect>* out) {
  RankState& r = ranks_[rank.value()];
  if (step.id != id_ || r.step.has_value()) return;
  r.step = step;
  ++steps_seen_;
  // What the record says was delivered, was: marks that were not looked at yet count too.
  for (size_t u = 0; u < config_.owns.size(); ++u) {
    if (u < step.parts.size()) r.delivered[u] = std::max(r.delivered[u], step.parts[u]);
    TryReduce(static_cast<int>(u), out);
  }
  TryPrepare(out);
  TryDecide(out);
}

void StepPipeline::OnReduced(int unit, std::vector<Effect>* out) {
  UnitState& u = units_[unit];
  if (!u.in_hand) return;
  u.in_hand = false;
  ++u.reduced;
  TryReduce(unit, out);
  TryBoundary(out);
  TryPrepare(out);
}

bool StepPipeline::given_up() const {
  return LacksCut() || std::any_of(owners_.begin(), owners_.end(), [](const OwnerPage& o) {
           return o.prepared.has_value() && o.prepared->given_up;
         });
}

bool StepPipeline::LacksCut() const {
  // Who has prepared lacked nothing.
  if (owners_[config_.slot.value()].prepared.has_value()) return false;
  for (int h = 0; h < hosts_.hosts(); ++h) {
    if (cut_[h] != id_) continue;
    for (int r = hosts_.first(h); r < hosts_.end(h); ++r) {
      if (!ranks_[r].step.has_value()) return true;
      for (size_t u = 0; u < units_.size(); ++u) {
        if (config_.owns[u] && received_[h][u] < ranks_[r].delivered[u]) return true;
      }
    }
  }
  return false;
}

void StepPipeline::OnCut(int host, StepId id, std::vector<Effect>* out) {
  cut_[host] = id;
  TryPrepare(out);
}

void StepPipeline::TryReduce(int unit, std::vector<Effect>* out) {
  UnitState& u = units_[unit];
  if (!config_.owns[unit] || u.in_hand || phase_ != Phase::kReducing) return;
  if (!open() || changing_ranges_ || given_up()) return;
  if (owners_[config_.slot.value()].prepared.has_value()) return;  // a predecessor came further
  bool someone = false;
  for (int r = hosts_.first(config_.host); r < hosts_.end(config_.host); ++r) {
    if (ranks_[r].delivered[unit] > u.reduced) {
      someone = true;
    } else if (!ranks_[r].step.has_value()) {
      return;  // may still deliver this part
    }
  }
  for (int h = 0; h < hosts_.hosts(); ++h) {
    if (h == config_.host) continue;
    const FromHost part = PartOf(h, unit, u.reduced);
    if (part == FromHost::kMayCome) return;
    someone |= part == FromHost::kHere;
  }
  if (!someone) return;
  u.in_hand = true;
  out->push_back({Effect::kReduce, unit, u.reduced, id_});
}

int StepPipeline::FinalParts(int unit) const {
  int parts = 0;
  for (const RankState& r : ranks_) {
    if (!r.step.has_value()) return -1;
    parts = std::max<int>(parts, r.delivered[unit]);
  }
  return parts;
}

uint32_t StepPipeline::DoneHere(const OwnerPage& o) const {
  return o.boundary_done.before.step == id_.step ? o.boundary_done.n : 0;
}

bool StepPipeline::IsNext(const BoundaryOffer& b) const {
  return b.before == id_ && b.n == boundary_n_ && b.ranges_epoch == config_.ranges_epoch;
}

bool StepPipeline::BoundaryBlocksPrepare() const {
  if (!boundary_offered_) return false;
  // PREPARED was read before BOUNDARY: whoever prepared without having offered this boundary never will.
  for (const OwnerPage& o : owners_) {
    if (o.prepared.has_value() && !IsNext(o.boundary)) return false;
  }
  return true;
}

void StepPipeline::TryPrepare(std::vector<Effect>* out) {
  if (phase_ != Phase::kReducing || !open()) return;
  if (owners_[config_.slot.value()].prepared.has_value()) return;
  const bool give_up = given_up();
  if (!give_up && steps_seen_ < config_.world_size) return;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (units_[u].in_hand) return;
    if (!give_up && config_.owns[u] && units_[u].reduced < FinalParts(static_cast<int>(u))) return;
  }
  if (BoundaryBlocksPrepare()) return;
  phase_ = Phase::kPreparing;
  out->push_back({Effect::kPrepare, -1, -1, id_});
}

void StepPipeline::OnOwner(Slot slot, const OwnerPage& page, std::vector<Effect>* out) {
  OwnerPage& o = owners_[slot.value()];
  o.boundary = page.boundary;
  o.boundary_done = page.boundary_done;
  o.done = page.done;
  o.phased = page.phased;
  if (page.prepared.has_value() && page.prepared->id == id_ &&
      page.prepared->ranges_epoch == config_.ranges_epoch) {
    o.prepared = page.prepared;
  }
  // A predecessor in this slot: what it published stands.
  if (slot == config_.slot) {
    if (DoneHere(o) >= boundary_n_) {
      boundary_n_ = DoneHere(o) + 1;
      boundary_offered_ = boundary_deciding_ = changing_ranges_ = false;
    }
    if (IsNext(o.boundary)) boundary_offered_ = true;
    if (o.prepared.has_value() && phase_ < Phase::kPrepared) phase_ = Phase::kPrepared;
    if (!own_seen_) {
      own_seen_ = true;
      for (size_t u = 0; u < units_.size(); ++u) TryReduce(static_cast<int>(u), out);
    }
  }
  TryBoundary(out);
  TryPrepare(out);
  TryDecide(out);
  TryConclude(out);
  TryLeave(out);
}

void StepPipeline::OnProposals(const Proposals& boundary, std::vector<Effect>* out) {
  boundary_proposals_.MergeMax(boundary);
  TryBoundary(out);
}

void StepPipeline::TryBoundary(std::vector<Effect>* out) {
  // Who has prepared stands in the step: a boundary before it was decided, or never will be.
  if (boundary_deciding_ || phase_ != Phase::kReducing || !open()) return;
  if (!boundary_offered_) return TryOffer(out);
  Proposals decision = decided_;
  for (const OwnerPage& o : owners_) {
    if (!IsNext(o.boundary)) return;
    decision.MergeMax(o.boundary.proposals);
  }
  if (decision.ranges > config_.ranges_epoch) {
    changing_ranges_ = true;
    for (const UnitState& u : units_) {
      if (u.in_hand) return;
    }
  }
  boundary_deciding_ = true;
  boundary_decision_ = decision;
  decided_ = decision;
  out->push_back({Effect::kDecideBoundary, -1, -1, id_, boundary_n_});
}

void StepPipeline::TryOffer(std::vector<Effect>* out) {
  bool wanted = boundary_proposals_.AnyNewerThan(decided_);
  for (const OwnerPage& o : owners_) {
    // Somebody else offers: join in, whatever this owner has read so far.
    if (IsNext(o.boundary)) wanted = true;
    if (o.prepared.has_value()) return;  // can not be decided any more
    // Each boundary record is read by all before the next one replaces it.
    if (DoneHere(o) + 1 < boundary_n_) return;
  }
  if (!wanted) return;
  boundary_offered_ = true;
  out->push_back({Effect::kPublishBoundary, -1, -1, id_, boundary_n_});
}

void StepPipeline::TryLeave(std::vector<Effect>* out) {
  if (open() || !own_seen_ || boundary_deciding_ || left_ || phase_ != Phase::kReducing) return;
  for (const OwnerPage& o : owners_) {
    if (o.done.step < after_.step) return;
    if (o.done.step == after_.step && DoneHere(o) + 1 < boundary_n_) return;
  }
  left_ = true;
  out->push_back({Effect::kChangeRanges, -1, -1, id_, boundary_n_ - 1});
}

void StepPipeline::TryDecide(std::vector<Effect>* out) {
  const bool give_up = given_up();
  if (phase_ != Phase::kPrepared || !own_seen_) return;
  if (!give_up && steps_seen_ < config_.world_size) return;
  std::vector<OwnerPrepared> prepared;
  prepared.reserve(owners_.size());
  for (const OwnerPage& o : owners_) {
    if (!o.prepared.has_value()) return;
    prepared.push_back(*o.prepared);
  }
  std::vector<TrainerStep> steps;
  steps.reserve(ranks_.size());
  for (const RankState& r : ranks_) {
    if (!give_up) steps.push_back(*r.step);
  }
  verdict_ = give_up ? GiveUp(id_) : Decide(steps, prepared, config_.loss_scale);
  phase_ = Phase::kPhasing;
  TryConclude(out);
}

void StepPipeline::TryConclude(std::vector<Effect>* out) {
  if (phase_ != Phase::kPhasing) return;
  if (config_.pre_update && verdict_.kind == VerdictKind::kCommit) {
    // What a predecessor has published stands: from then on blocks may have changed.
    if (owners_[config_.slot.value()].phased != id_) {
      if (!phase_asked_) out->push_back({Effect::kPreUpdate, -1, -1, id_});
      phase_asked_ = true;
      return;
    }
    for (const OwnerPage& o : owners_) {
      if (o.phased != id_) return;
    }
  }
  phase_ = Phase::kApplying;
  out->push_back({Effect::kStoreVerdict, -1, -1, id_});
  if (IsRepeated(verdict_.kind)) {
    out->push_back({Effect::kPublishDone, -1, -1, id_});
    BeginStep(id_.NextAttempt());
    return;
  }
  out->push_back({Effect::kApply, -1, -1, id_});
}

void StepPipeline::OnApplied(std::vector<Effect>* out) {
  if (phase_ != Phase::kApplying) return;
  out->push_back({Effect::kPublishDone, -1, -1, id_});
  decided_.MergeMax(verdict_.proposals);
  after_ = id_;
  boundary_n_ = 1;
  owners_[config_.slot.value()].done = id_;
  BeginStep(id_.NextStep());
  TryLeave(out);
}

std::string StepPipeline::WaitsFor() const {
  for (size_t m = 0; m < owners_.size(); ++m) {
    const OwnerPage& o = owners_[m];
    if (phase_ == Phase::kPrepared && !o.prepared.has_value()) {
      return absl::StrCat("slot ", m, " (PREPARED of step ", id_.ToString(), ")");
    }
    if (phase_ == Phase::kPhasing && o.phased != id_) {
      return absl::StrCat("slot ", m, " (norms of step ", id_.ToString(), ")");
    }
    if (decided_.ranges > config_.ranges_epoch && phase_ == Phase::kReducing) {
      if (o.done.step < after_.step)
        return absl::StrCat("slot ", m, " (DONE of step ", after_.ToString(), ")");
      if (o.done.step == after_.step && DoneHere(o) + 1 < boundary_n_) {
        return absl::StrCat("slot ", m, " (boundary ", boundary_n_ - 1, " before step ", id_.ToString(), ")");
      }
      continue;
    }
    if (phase_ == Phase::kReducing && BoundaryBlocksPrepare() && !IsNext(o.boundary)) {
      return absl::StrCat("slot ", m, " (offer at the boundary before step ", id_.ToString(), ")");
    }
  }
  // A rank without whose gradients another's can not be used comes before one that merely has not finished.
  for (int u = 0; u < static_cast<int>(units_.size()); ++u) {
    const auto lacks = [&](const RankState& r) { return r.delivered[u] <= units_[u].reduced; };
    if (!config_.owns[u] || std::all_of(ranks_.begin(), ranks_.end(), lacks)) continue;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (!ranks_[r].step.has_value() && lacks(ranks_[r])) {
        return absl::StrCat("rank ", r, " (gradients of unit ", u, ", step ", id_.ToString(), ")");
      }
    }
    for (int h = 0; h < hosts_.hosts(); ++h) {
      if (h == config_.host || units_[u].in_hand || PartOf(h, u, units_[u].reduced) != FromHost::kMayCome)
        continue;
      return absl::StrCat("host ", h, " (sum of unit ", u, ", step ", id_.ToString(), ")");
    }
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (!ranks_[r].step.has_value()) return absl::StrCat("rank ", r, " (step ", id_.ToString(), ")");
  }
  return "";
}

}  // namespace sherd

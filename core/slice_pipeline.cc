#include "core/slice_pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"

namespace sherd {

SlicePipeline::SlicePipeline(Config config, StepId id) : config_(std::move(config)), id_(id) {
  ABSL_RAW_CHECK(config_.consumers.size() == config_.slices.size(), "consumers are not those of the units");
  Begin(id);
}

void SlicePipeline::Begin(StepId id) {
  if (id == id_ && !units_.empty()) return;
  id_ = id;
  ranks_.assign(config_.end_rank - config_.first_rank, RankState());
  for (RankState& r : ranks_) r.delivered.assign(config_.slices.size(), 0);
  units_.assign(config_.slices.size(), UnitState());
  for (size_t u = 0; u < units_.size(); ++u) units_[u].consumed.assign(config_.consumers[u].size(), 0);
}

void SlicePipeline::OnOwn(int unit, Mark sliced) {
  UnitState& u = units_[unit];
  u.sliced = std::max(u.sliced, static_cast<uint16_t>(sliced.PartsOf(id_)));
}

void SlicePipeline::OnDelivered(Rank rank, int unit, Mark delivered, std::vector<SliceOrder>* out) {
  if (rank.value() < config_.first_rank || rank.value() >= config_.end_rank) return;
  uint16_t& known = ranks_[rank.value() - config_.first_rank].delivered[unit];
  const uint32_t parts = delivered.PartsOf(id_);
  if (parts <= known) return;
  known = static_cast<uint16_t>(parts);
  TrySlice(unit, out);
}

void SlicePipeline::OnTrainerStep(Rank rank, const TrainerStep& step, std::vector<SliceOrder>* out) {
  if (rank.value() < config_.first_rank || rank.value() >= config_.end_rank || step.id != id_) return;
  RankState& r = ranks_[rank.value() - config_.first_rank];
  if (r.step) return;
  r.step = true;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (u < step.parts.size()) r.delivered[u] = std::max(r.delivered[u], step.parts[u]);
    TrySlice(static_cast<int>(u), out);
  }
}

void SlicePipeline::OnConsumed(Slot slot, int unit, Mark consumed, std::vector<SliceOrder>* out) {
  const std::vector<int>& consumers = config_.consumers[unit];
  for (size_t i = 0; i < consumers.size(); ++i) {
    if (consumers[i] != slot.value()) continue;
    uint16_t& known = units_[unit].consumed[i];
    known = std::max(known, static_cast<uint16_t>(consumed.PartsOf(id_)));
  }
  TrySlice(unit, out);
}

void SlicePipeline::OnSliced(int unit, std::vector<SliceOrder>* out) {
  UnitState& u = units_[unit];
  if (!u.in_hand) return;
  u.in_hand = false;
  ++u.sliced;
  TrySlice(unit, out);
}

bool SlicePipeline::Delivered(int unit, int part) const {
  bool someone = false;
  for (const RankState& r : ranks_) {
    if (r.delivered[unit] > part) {
      someone = true;
    } else if (!r.step) {
      return false;  // may still deliver it
    }
  }
  return someone;
}

int SlicePipeline::Behind(int unit) const {
  const UnitState& u = units_[unit];
  for (size_t i = 0; i < u.consumed.size(); ++i) {
    if (u.consumed[i] < u.sliced) return config_.consumers[unit][i];
  }
  return -1;
}

void SlicePipeline::TrySlice(int unit, std::vector<SliceOrder>* out) {
  UnitState& u = units_[unit];
  if (!config_.slices[unit] || u.in_hand || !Delivered(unit, u.sliced) || Behind(unit) >= 0) return;
  u.in_hand = true;
  out->push_back({unit, u.sliced, id_});
}

std::string SlicePipeline::WaitsFor() const {
  for (int unit = 0; unit < static_cast<int>(units_.size()); ++unit) {
    const UnitState& u = units_[unit];
    if (!config_.slices[unit] || u.in_hand || !Delivered(unit, u.sliced)) continue;
    if (const int slot = Behind(unit); slot >= 0) {
      return absl::StrCat("slot ", slot, " (reduction of unit ", unit, ", step ", id_.ToString(), ")");
    }
  }
  return "";
}

}  // namespace sherd

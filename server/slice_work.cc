#include "server/slice_work.h"

#include <algorithm>
#include <utility>

#include "kernels/reduce_groups.h"
#include "runtime/kernel_types.h"
#include "server/block_runs.h"
#include "server/delivered_sources.h"

namespace sherd::server {

absl::Status SliceWork::SetAssignment(const runtime::Assignment& a, StepId current) {
  if (!memory_->place().several()) return absl::OkStatus();
  const std::vector<UnitInfo>& units = memory_->layout().units();
  const ReductionTree::Ranks ranks =
      memory_->spec().reduction.RanksOf(memory_->place().index, memory_->spec().world_size);
  first_rank_ = ranks.first, end_rank_ = ranks.end;
  SlicePipeline::Config config;
  config.first_rank = ranks.first, config.end_rank = ranks.end;
  config.slices.assign(units.size(), false);
  config.consumers.resize(units.size());
  ranges_.assign(units.size(), {});
  others_.clear();
  for (int m = 0; m < a.servers; ++m) {
    if (memory_->IsHere(Slot(m), a.hosts)) continue;
    absl::StatusOr<runtime::OwnerRecords*> records = memory_->owner(Slot(m));
    if (!records.ok()) return records.status();
    others_.emplace_back(Slot(m), *records);
  }
  for (size_t u = 0; u < units.size(); ++u) {
    if (units[u].blocks.begin >= memory_->trainable_blocks()) continue;  // frozen: nobody delivers it
    ranges_[u] = SlicedBy(units[u].blocks, slot_, a.hosts);
    config.slices[u] = !ranges_[u].empty();
    for (const auto& [slot, records] : others_) {
      if (!Owned(units[u].blocks, slot, a.hosts).empty()) config.consumers[u].push_back(slot.value());
    }
  }
  pipeline_.emplace(std::move(config), current);
  return absl::OkStatus();
}

void SliceWork::Show() {
  const int units = static_cast<int>(ranges_.size());
  const StepId id = pipeline_->current();
  for (int u = 0; u < units; ++u) {
    pipeline_->OnOwn(u, Mark(records_->Sliced(u).load(std::memory_order_relaxed)));
    for (const auto& [slot, records] : others_) {
      const Mark consumed(records->Consumed(u).load(std::memory_order_acquire));
      if (consumed.PartsOf(id) > 0) pipeline_->OnConsumed(slot, u, consumed, &todo_);
    }
  }
  for (int r = first_rank_; r < end_rank_; ++r) {
    const runtime::RankRecords& rank = memory_->rank(Rank(r));
    // The record first: with it, all marks of the step are seen.
    const bool step = rank.HasStep(id.step) == std::optional<StepId>(id);
    for (int u = 0; u < units; ++u) pipeline_->OnDelivered(Rank(r), u, rank.Delivered(u), &todo_);
    if (!step) continue;
    if (std::optional<TrainerStep> record = rank.ReadStep(id.step); record.has_value())
      pipeline_->OnTrainerStep(Rank(r), *record, &todo_);
  }
}

absl::StatusOr<bool> SliceWork::Pass(StepId current) {
  if (!pipeline_.has_value()) return false;
  // What was asked for in a step that has been left is nobody's any more.
  if (current != pipeline_->current()) todo_.clear();
  pipeline_->Begin(current);
  Show();
  if (todo_.empty()) return false;
  std::vector<SliceOrder> slices;
  slices.swap(todo_);
  if (absl::Status s = Sum(slices); !s.ok()) return s;
  for (const SliceOrder& slice : slices) pipeline_->OnSliced(slice.unit, &todo_);
  return true;
}

absl::Status SliceWork::Sum(const std::vector<SliceOrder>& slices) {
  const int64_t wire_bytes = memory_->wire_block_bytes();
  const DType wire = memory_->spec().reduction.wire;
  // Unit by unit: the agent sends one while the next is summed.
  for (const SliceOrder& slice : slices) {
    const Mark mark = Mark::Of(slice.id, slice.part + 1);
    absl::StatusOr<std::vector<kernels::Source>> all =
        DeliveredSources(*memory_, memory_->spec().world_size, slice.id, slice.unit, slice.part);
    if (!all.ok()) return all.status();
    const std::vector<kernels::Source> ours(all->begin() + first_rank_, all->begin() + end_rank_);
    const bool nothing =
        std::all_of(ours.begin(), ours.end(), [](const kernels::Source& s) { return s.data == nullptr; });
    std::vector<BlockRange> pieces;
    for (const BlockRange& range : ranges_[slice.unit]) {
      for (int64_t b = range.begin; b < range.end && !nothing; b += kRunBlocks)
        pieces.push_back({b, std::min(b + kRunBlocks, range.end)});
    }
    const int64_t unit_begin = memory_->layout().units()[slice.unit].blocks.begin;
    pool_->Run(static_cast<int64_t>(pieces.size()), [&](int, int64_t i) {
      std::vector<kernels::Source> at(ours);
      for (kernels::Source& s : at) {
        if (s.data != nullptr)
          s.data = static_cast<const char*>(s.data) + (pieces[i].begin - unit_begin) * BlockBytesOf(s);
      }
      kernels::ReducePartial(at.data(), static_cast<int>(at.size()), runtime::KernelType(wire),
                             memory_->outbox() + pieces[i].begin * wire_bytes, pieces[i].size());
    });
    if (nothing) records_->SlicedNothing(slice.unit).store(mark.word(), std::memory_order_release);
    records_->Sliced(slice.unit).store(mark.word(), std::memory_order_seq_cst);
    memory_->RingAgent();
  }
  if (memory_->spec().stage >= 2) {  // trainers with a ring of units may wait for room
    for (int r = first_rank_; r < end_rank_; ++r) memory_->trainer(Rank(r)).bell.Ring();
  }
  return absl::OkStatus();
}

}  // namespace sherd::server

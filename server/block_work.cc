#include "server/block_work.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/block_journal.h"
#include "kernels/reduce_groups.h"
#include "runtime/clock.h"
#include "runtime/compute_parameters.h"
#include "runtime/kernel_types.h"
#include "server/delivered_sources.h"
#include "server/update_scalars.h"

namespace sherd::server {
namespace {

// Reduced gradients of more than this do not stay in the cache until they are applied: write past it.
constexpr int64_t kStreamBytes = 8 << 20;

BlockRange Intersect(BlockRange a, BlockRange b) {
  return {std::max(a.begin, b.begin), std::max(std::max(a.begin, b.begin), std::min(a.end, b.end))};
}

// Counts the runs of each unit that are under way, and says when its parameters have changed: then the agent
// sends them, while the next ones still are being updated. Of one host: nothing.
class ChangedUnits {
 public:
  ChangedUnits(runtime::JobMemory* memory, runtime::OwnerRecords* records)
      : memory_(memory), records_(records) {
    if (memory->place().several()) left_ = std::vector<std::atomic<int>>(memory->layout().units().size());
  }
  void Expect(int tensor) {
    if (!left_.empty()) left_[UnitOf(tensor)].fetch_add(1, std::memory_order_relaxed);
  }
  void Done(int tensor) {
    if (left_.empty()) return;
    const int unit = UnitOf(tensor);
    if (left_[unit].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    records_->Changed(unit).fetch_add(1, std::memory_order_seq_cst);
    memory_->RingAgent();
  }

 private:
  int UnitOf(int tensor) const { return memory_->layout().tensors()[tensor].unit; }

  runtime::JobMemory* const memory_;
  runtime::OwnerRecords* const records_;
  std::vector<std::atomic<int>> left_;
};

}  // namespace

BlockWork::BlockWork(runtime::JobMemory* memory, runtime::OwnerRecords* records, WorkerPool* pool,
                     BlockWorkCounters* counters)
    : memory_(memory),
      records_(records),
      pool_(pool),
      counters_(counters),
      kind_(memory->spec().optimizer),
      update_(kernels::ResolveJournaled(kind_)),
      save_(kernels::ResolveSave(kind_)),
      passes_(kernels::ResolveTwoPasses(kind_)),
      snapshots_(memory, records) {}

void BlockWork::SetRanges(std::vector<UnitRange> ranges, int world_size) {
  ranges_ = std::move(ranges);
  world_size_ = world_size;
  int64_t blocks = 0;
  for (const UnitRange& r : ranges_) blocks += Intersect(r.blocks, {0, memory_->trainable_blocks()}).size();
  stream_ = blocks * kBlockBytes > kStreamBytes;
}

void BlockWork::Recover() {
  for (int w = 0; w < runtime::kMaxWorkers; ++w) {
    const runtime::WorkerUndo u = records_->undo(w);
    RecoverSlot(
        *u.apply, [&](int64_t b) { return Mark(memory_->apply_stamps()[b].load(std::memory_order_acquire)); },
        [&](int64_t b, uint64_t saved) {
          const uint64_t bytes = std::min<uint64_t>(saved, kBlockElements) * 4;
          // Of two passes the first keeps the gradient and the planes, the second the values alone, unless it
          // kept the whole block because values by hand came with it.
          const bool moving = Mark(u.apply->mark.load(std::memory_order_relaxed)).parts() != 0;
          for (int p = 0; p < memory_->planes(); ++p) {
            if (b >= memory_->plane_blocks(p)) continue;
            if (passes_.follow != nullptr && !moving && saved != kAllSaved && p > 0) continue;
            float* const plane = p == 0 && moving ? memory_->grad() : memory_->plane(p);
            std::memcpy(plane + b * kBlockElements, u.apply_planes + p * kBlockElements, bytes);
          }
        });
    RecoverSlot(
        *u.reduce,
        [&](int64_t b) { return Mark(memory_->reduce_stamps()[b].load(std::memory_order_acquire)); },
        [&](int64_t b, uint64_t saved) {
          if (saved == 0) return;
          std::memcpy(memory_->grad() + b * kBlockElements, u.reduce_block, kBlockBytes);
          memory_->block_sumsq()[b] = *u.reduce_sumsq;
        });
  }
}

void BlockWork::ReduceRun(StepId id, const Part& part, BlockRange unit, BlockRange run,
                          const std::vector<kernels::Source>& all, int worker) {
  const Mark mark = Mark::Of(id, part.part + 1);
  std::atomic<uint64_t>* stamps = memory_->reduce_stamps();
  std::vector<kernels::Source> at(all);
  const ReductionTree& tree = memory_->spec().reduction;
  std::vector<kernels::SourceGroup> groups;
  for (int g = 0; !tree.groups.empty() && g < tree.size(); ++g) {
    const ReductionTree::Ranks ranks = tree.RanksOf(g, static_cast<int>(at.size()));
    groups.push_back({at.data() + ranks.first, ranks.end - ranks.first});
  }
  const auto reduce = [&](int64_t begin, int64_t blocks, bool accumulate, bool stream) {
    for (size_t r = 0; r < all.size(); ++r) {
      if (all[r].data == nullptr) continue;
      at[r].data = static_cast<const char*>(all[r].data) + (begin - unit.begin) * BlockBytesOf(all[r]);
    }
    float* const out = memory_->grad() + begin * kBlockElements;
    double* const sumsq = memory_->block_sumsq() + begin;
    if (groups.empty()) {
      kernels::ReduceBlocks(at.data(), static_cast<int>(at.size()), accumulate, out, blocks, sumsq, stream);
    } else {
      kernels::ReduceGroups(groups.data(), static_cast<int>(groups.size()), runtime::KernelType(tree.wire),
                            accumulate, out, blocks, sumsq, stream);
    }
  };
  const runtime::WorkerUndo undo = records_->undo(worker);
  for (int64_t b = run.begin; b < run.end;) {
    if (Mark(stamps[b].load(std::memory_order_relaxed)) >= mark) {
      ++b;
      continue;
    }
    if (part.part == 0) {  // overwrites: repeatable as long as the staging stands, so no journal
      int64_t end = b + 1;
      while (end < run.end && !(Mark(stamps[end].load(std::memory_order_relaxed)) >= mark)) ++end;
      reduce(b, end - b, false, stream_);
      for (; b < end; ++b) stamps[b].store(mark.word(), std::memory_order_release);
      continue;
    }
    JournaledMutate(
        *undo.reduce, stamps[b], mark, b,
        [&] {
          std::memcpy(undo.reduce_block, memory_->grad() + b * kBlockElements, kBlockBytes);
          *undo.reduce_sumsq = memory_->block_sumsq()[b];
        },
        [&] {
          if (memory_->spec().virtual_ranks == 0) return reduce(b, 1, true, false);
          // Each is added to what came before it, so that it does not matter how many come in one part.
          for (size_t r = 0; r < all.size(); ++r) {
            if (all[r].data == nullptr) continue;
            const kernels::Source one = {
                static_cast<const char*>(all[r].data) + (b - unit.begin) * BlockBytesOf(all[r]), all[r].scale,
                all[r].dtype};
            kernels::ReduceBlocks(&one, 1, true, memory_->grad() + b * kBlockElements, 1,
                                  memory_->block_sumsq() + b, false);
          }
        });
    ++b;
  }
}

absl::Status BlockWork::Reduce(StepId id, const std::vector<Part>& parts) {
  const int64_t start = runtime::MonotonicNanos();
  struct Piece {
    const Part* part;
    BlockRange unit, run;
    const std::vector<kernels::Source>* sources;
  };
  std::vector<std::vector<kernels::Source>> sources(parts.size());
  std::vector<Piece> pieces;
  int64_t bytes = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    absl::StatusOr<std::vector<kernels::Source>> s =
        DeliveredSources(*memory_, world_size_, id, parts[i].unit, parts[i].part);
    if (!s.ok()) return s.status();
    sources[i] = *std::move(s);
    const int64_t live =
        std::count_if(sources[i].begin(), sources[i].end(), [](auto& x) { return x.data != nullptr; });
    const BlockRange unit = memory_->layout().units()[parts[i].unit].blocks;
    for (const UnitRange& r : ranges_) {
      if (r.unit != parts[i].unit) continue;
      const BlockRange own = Intersect(r.blocks, {0, memory_->trainable_blocks()});
      bytes += own.size() *
               (live * memory_->sizes().staging_block_bytes() + kBlockBytes * (parts[i].part == 0 ? 1 : 2));
      for (int64_t b = own.begin; b < own.end; b += kRunBlocks) {
        pieces.push_back({&parts[i], unit, {b, std::min(b + kRunBlocks, own.end)}, &sources[i]});
      }
    }
  }
  pool_->Run(static_cast<int64_t>(pieces.size()), [&](int worker, int64_t i) {
    const Piece& p = pieces[i];
    ReduceRun(id, *p.part, p.unit, p.run, *p.sources, worker);
  });
  counters_->reduce_bytes.fetch_add(bytes, std::memory_order_relaxed);
  counters_->reduce_ns.fetch_add(runtime::MonotonicNanos() - start, std::memory_order_relaxed);
  return absl::OkStatus();
}

ExactSum BlockWork::SumSquares(const std::vector<uint64_t>& has_grad) const {
  ExactSum sum;
  const double* sumsq = memory_->block_sumsq();
  for (const UnitRange& r : ranges_) {
    const BlockRange own = Intersect(r.blocks, {0, memory_->trainable_blocks()});
    memory_->layout().ForEachRun(own, [&](int tensor, BlockRange run) {
      if (!TestBit(has_grad, tensor)) return;
      for (int64_t b = run.begin; b < run.end; ++b) sum.Add(sumsq[b]);
    });
  }
  return sum;
}

void BlockWork::CountUpdates(const Verdict& verdict, const std::vector<ImportSegment>& imports) {
  const std::atomic<uint64_t>* before = memory_->tensor_steps(Step(verdict.id.step.value() - 1));
  const bool commit = verdict.kind == VerdictKind::kCommit;
  const int tensors = static_cast<int>(memory_->layout().tensors().size());
  std::vector<uint64_t> counts(tensors + 1);
  for (int t = 0; t < tensors; ++t) {
    const bool updated = commit && TestBit(verdict.has_grad, t);
    counts[t] = before[t].load(std::memory_order_relaxed) + (updated ? 1 : 0);
  }
  counts[tensors] = before[tensors].load(std::memory_order_relaxed) + (commit ? 1 : 0);
  SetUpdateCounts(imports, std::move(counts), verdict.id.step);
}

void BlockWork::SetUpdateCounts(const std::vector<ImportSegment>& imports, std::vector<uint64_t> counts,
                                Step step) {
  const std::vector<TensorInfo>& tensors = memory_->layout().tensors();
  for (const ImportSegment& import : imports) {
    bool all = true;
    uint64_t most = 0;
    for (const TensorInfo& t : tensors) {
      const std::optional<uint64_t> count = import.UpdateCount(t.index);
      all &= count.has_value() || !t.spec.trainable;
      if (!count.has_value()) continue;
      counts[t.index] = *count;
      most = std::max(most, *count);
    }
    // Whoever brings the counts of the whole model brings a training with it: schedules go on where that
    // stood.
    if (all && most > 0) counts.back() = most;
  }
  // Only what they come to: another owner may have stored them, and go by them, already.
  std::atomic<uint64_t>* const steps = memory_->tensor_steps(step);
  for (size_t t = 0; t < counts.size(); ++t) steps[t].store(counts[t], std::memory_order_relaxed);
}

absl::StatusOr<std::vector<ImportSegment>> BlockWork::OpenImports(const std::vector<uint64_t>& ids) {
  std::vector<ImportSegment> open;
  for (uint64_t id : ids) {
    absl::StatusOr<ImportSegment> s = ImportSegment::Open(*memory_, id);
    if (absl::IsNotFound(s.status())) continue;
    if (!s.ok()) return s.status();
    open.push_back(*std::move(s));
  }
  return open;
}

bool BlockWork::Changes(const std::vector<ImportSegment>& imports, const TensorInfo& tensor) const {
  if (tensor.blocks.empty()) return false;
  for (const ImportSegment& import : imports) {
    for (int p = 0; p < memory_->planes(); ++p) {
      if (import.Find(p, tensor.blocks.begin) != nullptr) return true;
    }
  }
  return RoundsAnew(imports, tensor.index);
}

bool BlockWork::RoundsAnew(const std::vector<ImportSegment>& imports, int tensor) const {
  if (memory_->compute() == nullptr || !memory_->spec().stochastic_rounding) return false;
  return std::any_of(imports.begin(), imports.end(),
                     [&](const ImportSegment& i) { return i.UpdateCount(tensor).has_value(); });
}

void BlockWork::ApplyRun(const Verdict& verdict, const BlockRun& run, const TensorUpdate* update,
                         const std::vector<ImportSegment>& imports, int worker) {
  const Mark mark = Mark::Of(verdict.id);
  const runtime::WorkerUndo undo = records_->undo(worker);
  std::atomic<uint64_t>* stamps = memory_->apply_stamps();
  const int planes = memory_->planes();
  const uint64_t updates = memory_->tensor_steps(verdict.id.step)[run.tensor].load(std::memory_order_relaxed);
  const bool rounds_anew = RoundsAnew(imports, run.tensor);
  ForEachUnstamped(run.blocks, mark, [&](int64_t b) {
    const int64_t at = b * kBlockElements;
    const kernels::UpdateArgs args = ArgsAt(b);
    const bool whole = b < memory_->trainable_blocks();
    // Values by hand go over the update's, and what trainers compute with follows from both.
    const auto finish = [&] {
      bool by_hand = rounds_anew;
      for (const ImportSegment& import : imports) {
        for (int p = 0; p < planes && (p == 0 || whole); ++p) {
          const float* values = import.Find(p, b);
          if (values == nullptr) continue;
          std::memcpy(memory_->plane(p) + at, values, kBlockBytes);
          by_hand |= p == 0;
        }
      }
      if (update != nullptr || by_hand) StoreCompute(b, updates);
    };
    const auto update_in = [&](std::atomic<uint64_t>* saved) {
      if (passes_.follow != nullptr) {
        passes_.follow(args.param, args.grad, update->scalars, undo.apply_planes, saved);
      } else {
        update_(args, update->scalars, undo.apply_planes, saved);
      }
    };
    // A second pass keeps the values alone: by hand other planes may change, too.
    const bool one_pass =
        update != nullptr && update->ns_steps == 0 && (passes_.follow == nullptr || imports.empty());
    if (one_pass) {
      return JournaledPass(*undo.apply, stamps[b], mark, b, [&] {
        update_in(&undo.apply->saved);
        finish();
      });
    }
    JournaledMutate(
        *undo.apply, stamps[b], mark, b,
        [&] {
          if (whole) {
            save_(args, undo.apply_planes);
          } else {
            std::memcpy(undo.apply_planes, args.param, kBlockBytes);
          }
        },
        [&] {
          if (update != nullptr && update->ns_steps > 0) {
            kernels::MuonUpdate(args, memory_->directions() + at, update->muon, kBlockElements);
          } else if (update != nullptr) {
            std::atomic<uint64_t> again;  // the block is saved; so is, once more, each line before it changes
            update_in(&again);
          }
          finish();
        });
  });
}

void BlockWork::StoreCompute(int64_t block, uint64_t updates) {
  if (memory_->compute() == nullptr) return;
  runtime::RoundToCompute(memory_->spec(), memory_->plane(0), {block, block + 1}, updates,
                          memory_->compute());
}

absl::Status BlockWork::Apply(const Verdict& verdict, uint64_t push) {
  const int64_t start = runtime::MonotonicNanos();
  std::vector<uint64_t> ids = verdict.imports;
  if (push != 0) ids.push_back(push);
  absl::StatusOr<std::vector<ImportSegment>> imports = OpenImports(ids);
  if (!imports.ok()) return imports.status();
  CountUpdates(verdict, *imports);
  const std::vector<TensorInfo>& tensors = memory_->layout().tensors();
  const absl::StatusOr<std::vector<TensorUpdate>> updates =
      UpdatesOf(*memory_, verdict, ranges_, /*with_trust=*/kernels::Info(kind_).norms);
  if (!updates.ok()) return updates.status();
  std::vector<BlockRun> runs;
  int64_t bytes = 0;
  for (const BlockRun& run : SplitRuns(memory_->layout(), ranges_)) {
    if (!Updates(*memory_, verdict, run.tensor) && !Changes(*imports, tensors[run.tensor])) continue;
    bytes += run.blocks.size() * kBlockBytes * (passes_.follow != nullptr ? 3 : 1 + 2 * memory_->planes());
    if (memory_->compute() != nullptr) bytes += run.blocks.size() * kBlockBytes / 2;
    runs.push_back(run);
  }
  snapshots_.Begin(verdict.id.step, /*at_boundary=*/false);
  ChangedUnits changed(memory_, records_);
  for (const BlockRun& run : runs) changed.Expect(run.tensor);
  pool_->Run(static_cast<int64_t>(runs.size()), [&](int worker, int64_t i) {
    const bool update = Updates(*memory_, verdict, runs[i].tensor);
    ApplyRun(verdict, runs[i], update ? &(*updates)[runs[i].tensor] : nullptr, *imports, worker);
    changed.Done(runs[i].tensor);
  });
  counters_->apply_bytes.fetch_add(bytes, std::memory_order_relaxed);
  counters_->apply_ns.fetch_add(runtime::MonotonicNanos() - start, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status BlockWork::StoreImport(uint64_t import, StepId after) {
  absl::StatusOr<std::vector<ImportSegment>> imports = OpenImports({import});
  if (!imports.ok()) return imports.status();
  snapshots_.Begin(after.step, /*at_boundary=*/true);
  const std::vector<TensorInfo>& tensors = memory_->layout().tensors();
  const std::atomic<uint64_t>* const now = memory_->tensor_steps(after.step);
  std::vector<uint64_t> counts(tensors.size() + 1);
  for (size_t t = 0; t < counts.size(); ++t) counts[t] = now[t].load(std::memory_order_relaxed);
  SetUpdateCounts(*imports, std::move(counts), after.step);
  ChangedUnits changed(memory_, records_);
  for (const BlockRun& run : SplitRuns(memory_->layout(), ranges_)) {
    if (!Changes(*imports, tensors[run.tensor])) continue;
    const bool rounds_anew = RoundsAnew(*imports, run.tensor);
    const uint64_t updates = memory_->tensor_steps(after.step)[run.tensor].load(std::memory_order_relaxed);
    for (int64_t b = run.blocks.begin; b < run.blocks.end; ++b) {
      if (snapshots_.any()) snapshots_.Preserve({b, b + 1});
      bool by_hand = rounds_anew;
      for (int p = 0; p < memory_->planes(); ++p) {
        const float* values = b < memory_->plane_blocks(p) ? imports->front().Find(p, b) : nullptr;
        if (values == nullptr) continue;
        std::memcpy(memory_->plane(p) + b * kBlockElements, values, kBlockBytes);
        by_hand |= p == 0;
      }
      if (by_hand) StoreCompute(b, updates);
    }
    changed.Expect(run.tensor);
    changed.Done(run.tensor);
  }
  return absl::OkStatus();
}

}  // namespace sherd::server

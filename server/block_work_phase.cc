// The pre-update phase of optimizers that need something of whole tensors (kernels::OptimizerInfo): it stands
// in memory before any owner changes a parameter.
#include <algorithm>

#include "core/block_journal.h"
#include "kernels/muon.h"
#include "runtime/clock.h"
#include "server/block_work.h"

namespace sherd::server {

kernels::UpdateArgs BlockWork::ArgsAt(int64_t block) const {
  const int64_t at = block * kBlockElements;
  kernels::UpdateArgs args{};
  args.param = memory_->plane(0) + at;
  if (block >= memory_->trainable_blocks()) return args;
  for (int p = 1; p < memory_->planes(); ++p) args.planes[p - 1] = memory_->plane(p) + at;
  args.grad = memory_->grad() + at;
  return args;
}

void BlockWork::MoveRun(StepId id, const BlockRun& run, const TensorUpdate& update, int worker) {
  const Mark mark = Mark::JustBefore(id);
  const runtime::WorkerUndo undo = records_->undo(worker);
  std::atomic<uint64_t>* const stamps = memory_->apply_stamps();
  ForEachUnstamped(run.blocks, mark, [&](int64_t b) {
    JournaledPass(*undo.apply, stamps[b], mark, b, [&] {
      passes_.move(ArgsAt(b), memory_->grad() + b * kBlockElements, update.scalars, undo.apply_planes,
                   &undo.apply->saved, memory_->block_norms() + 2 * b);
    });
  });
}

// Each matrix is one piece of work: nothing of it is ever split.
void BlockWork::TakeDirections(const std::vector<TensorUpdate>& updates, const std::vector<BlockRun>& runs) {
  std::vector<int> matrices;
  for (const BlockRun& run : runs) {
    const bool first = run.blocks.begin == memory_->layout().tensors()[run.tensor].blocks.begin;
    if (first && updates[run.tensor].ns_steps > 0) matrices.push_back(run.tensor);
  }
  pool_->Run(static_cast<int64_t>(matrices.size()), [&](int, int64_t i) {
    const TensorUpdate& u = updates[matrices[i]];
    const int64_t block = memory_->layout().tensors()[matrices[i]].blocks.begin;
    kernels::MuonDirection(ArgsAt(block), u.muon, u.rows, u.columns, u.ns_steps,
                           memory_->directions() + block * kBlockElements);
  });
}

absl::Status BlockWork::PreUpdate(const Verdict& verdict) {
  const absl::StatusOr<std::vector<TensorUpdate>> updates =
      UpdatesOf(*memory_, verdict, ranges_, /*with_trust=*/false);
  if (!updates.ok()) return updates.status();
  const int64_t start = runtime::MonotonicNanos();
  std::vector<BlockRun> runs = SplitRuns(memory_->layout(), ranges_);
  runs.erase(std::remove_if(runs.begin(), runs.end(),
                            [&](const BlockRun& run) { return !Updates(*memory_, verdict, run.tensor); }),
             runs.end());
  if (kernels::Info(kind_).directions) TakeDirections(*updates, runs);
  if (passes_.move == nullptr) return absl::OkStatus();
  snapshots_.Begin(verdict.id.step, /*at_boundary=*/false);
  pool_->Run(static_cast<int64_t>(runs.size()), [&](int worker, int64_t i) {
    MoveRun(verdict.id, runs[i], (*updates)[runs[i].tensor], worker);
  });
  int64_t blocks = 0;
  for (const BlockRun& run : runs) blocks += run.blocks.size();
  // Values read; gradient and planes read and written.
  counters_->apply_bytes.fetch_add(blocks * kBlockBytes * (1 + 2 * memory_->planes()),
                                   std::memory_order_relaxed);
  counters_->apply_ns.fetch_add(runtime::MonotonicNanos() - start, std::memory_order_relaxed);
  return absl::OkStatus();
}

}  // namespace sherd::server

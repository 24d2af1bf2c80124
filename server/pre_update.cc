#include "server/pre_update.h"

#include <algorithm>

#include "kernels/muon.h"
#include "kernels/optimizer.h"
#include "server/block_runs.h"
#include "server/update_scalars.h"

namespace sherd::server {
namespace {

kernels::UpdateArgs ArgsAt(const runtime::JobMemory& memory, int64_t block) {
  const int64_t at = block * kBlockElements;
  kernels::UpdateArgs args{};
  args.param = memory.plane(0) + at;
  for (int p = 1; p < memory.planes(); ++p) args.planes[p - 1] = memory.plane(p) + at;
  args.grad = memory.grad() + at;
  return args;
}

void TakeNorms(runtime::JobMemory& memory, const std::vector<TensorUpdate>& updates,
               const std::vector<BlockRun>& runs, WorkerPool* pool) {
  const kernels::NormsFn norms = kernels::ResolveNorms(memory.spec().optimizer);
  pool->Run(static_cast<int64_t>(runs.size()), [&](int, int64_t i) {
    for (int64_t b = runs[i].blocks.begin; b < runs[i].blocks.end; ++b) {
      norms(ArgsAt(memory, b), updates[runs[i].tensor].scalars, memory.block_norms() + 2 * b);
    }
  });
}

// Each matrix is one piece of work: nothing of it is ever split.
void TakeDirections(runtime::JobMemory& memory, const std::vector<TensorUpdate>& updates,
                    const std::vector<BlockRun>& runs, WorkerPool* pool) {
  std::vector<int> matrices;
  for (const BlockRun& run : runs) {
    const bool first = run.blocks.begin == memory.layout().tensors()[run.tensor].blocks.begin;
    if (first && updates[run.tensor].ns_steps > 0) matrices.push_back(run.tensor);
  }
  pool->Run(static_cast<int64_t>(matrices.size()), [&](int, int64_t i) {
    const TensorUpdate& u = updates[matrices[i]];
    const int64_t block = memory.layout().tensors()[matrices[i]].blocks.begin;
    kernels::MuonDirection(ArgsAt(memory, block), u.muon, u.rows, u.columns, u.ns_steps,
                           memory.directions() + block * kBlockElements);
  });
}

}  // namespace

absl::Status PreUpdate(runtime::JobMemory& memory, const Verdict& verdict,
                       const std::vector<UnitRange>& ranges, WorkerPool* pool) {
  const absl::StatusOr<std::vector<TensorUpdate>> updates =
      UpdatesOf(memory, verdict, ranges, /*with_trust=*/false);
  if (!updates.ok()) return updates.status();
  std::vector<BlockRun> runs = SplitRuns(memory.layout(), ranges);
  runs.erase(std::remove_if(runs.begin(), runs.end(),
                            [&](const BlockRun& run) { return !Updates(memory, verdict, run.tensor); }),
             runs.end());
  const kernels::OptimizerInfo& optimizer = kernels::Info(memory.spec().optimizer);
  if (optimizer.norms) TakeNorms(memory, *updates, runs, pool);
  if (optimizer.directions) TakeDirections(memory, *updates, runs, pool);
  return absl::OkStatus();
}

}  // namespace sherd::server

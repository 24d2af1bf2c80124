// What an owner does to its blocks: reduce, norms, update, import; resumable after a death anywhere
// (core/block_journal.h).
//
// Thread-compatible; spreads its work over the pool. Blocks while it works: this is the hot path.
#ifndef SHERD_SERVER_BLOCK_WORK_H_
#define SHERD_SERVER_BLOCK_WORK_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/exact_sum.h"
#include "core/mark.h"
#include "core/partition.h"
#include "core/step_records.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "runtime/job_memory.h"
#include "server/block_runs.h"
#include "server/import_segment.h"
#include "server/snapshot_keeper.h"
#include "server/update_scalars.h"
#include "server/worker_pool.h"

namespace sherd::server {

// Bytes moved and time taken, for metrics and the step benchmark. Read from any thread.
struct BlockWorkCounters {
  std::atomic<uint64_t> reduce_bytes{0}, apply_bytes{0};
  std::atomic<uint64_t> reduce_ns{0}, apply_ns{0};
};

class BlockWork {
 public:
  // `memory`, `records` (of `slot`), `pool` and `counters` must outlive this.
  BlockWork(runtime::JobMemory* memory, runtime::OwnerRecords* records, WorkerPool* pool,
            BlockWorkCounters* counters);

  // Puts back what a dead predecessor's workers left half done. REQUIRES: it is dead. Repeatable.
  void Recover();

  // The ranges this owner works on from now on, and how many ranks' gradients it sums there.
  void SetRanges(std::vector<UnitRange> ranges, int world_size);
  const std::vector<UnitRange>& ranges() const { return ranges_; }

  struct Part {
    int unit;
    int part;
  };
  // Sums the given parts of step `id` over the ranks that delivered them (those whose DELIVERED mark speaks
  // of the part), by the job's reduction tree, on all own trainable blocks, with block norms. Publishes
  // nothing.
  //   DATA_LOSS  a rank's delivery lies outside its staging; the message names rank and unit. Nothing of that
  //   unit is stamped past it.
  absl::Status Reduce(StepId id, const std::vector<Part>& parts);

  // Exact sum of the block norms of own blocks whose tensor is set in `has_grad`.
  ExactSum SumSquares(const std::vector<uint64_t>& has_grad) const;

  // Of an optimizer with a pre-update phase. With norms: moves the planes of all own blocks that the verdict
  // updates, turns their gradients into directions and writes JobMemory::block_norms. With directions: writes
  // JobMemory::directions of the matrices whose first block is one of the own, each read whole. Resumable as
  // Apply is; publishes nothing. REQUIRES: all owners are PREPARED, verdict.kind is kCommit. INTERNAL as
  // UpdatesOf.
  absl::Status PreUpdate(const Verdict& verdict);

  // Brings own blocks to verdict.id: update of tensors with a gradient (kCommit), then values of the
  // verdict's imports. `push`: an import that takes effect with this verdict, or 0. Also counts the tensors'
  // updates.
  absl::Status Apply(const Verdict& verdict, uint64_t push);

  // Stores an import between steps, after step `after`.
  absl::Status StoreImport(uint64_t import, StepId after);

  // The snapshots that are kept while this works.
  SnapshotKeeper& snapshots() { return snapshots_; }

 private:
  void ReduceRun(StepId id, const Part& part, BlockRange unit, BlockRange run,
                 const std::vector<kernels::Source>& sources, int worker);
  static constexpr int64_t kBlockBytes = kBlockElements * 4;

  // What the update of a block works on; of one that is not trainable its values alone.
  kernels::UpdateArgs ArgsAt(int64_t block) const;
  // Calls what(b) of each block whose apply stamp is older than `mark`, when open snapshots have kept it.
  template <typename What>
  void ForEachUnstamped(BlockRange blocks, Mark mark, What&& what) {
    std::atomic<uint64_t>* const stamps = memory_->apply_stamps();
    int64_t kept = blocks.begin;
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      if (Mark(stamps[b].load(std::memory_order_relaxed)) >= mark) continue;
      if (snapshots_.any() && b >= kept) {
        kept = std::min(b + SnapshotKeeper::kBlocksAtOnce, blocks.end);
        snapshots_.Preserve({b, kept});
      }
      what(b);
    }
  }
  void MoveRun(StepId id, const BlockRun& run, const TensorUpdate& update, int worker);
  void TakeDirections(const std::vector<TensorUpdate>& updates, const std::vector<BlockRun>& runs);
  void ApplyRun(const Verdict& verdict, const BlockRun& run, const TensorUpdate* update,
                const std::vector<ImportSegment>& imports, int worker);
  // Rounds a block's parameters to what trainers compute with, if that has 16 bits: in the same pass that
  // wrote them, while they are in the cache. `updates` of its tensor, this one included.
  void StoreCompute(int64_t block, uint64_t updates);
  // Imports that are gone are passed over: nobody may hold up a job by naming one.
  absl::StatusOr<std::vector<ImportSegment>> OpenImports(const std::vector<uint64_t>& ids);
  // `counts`: of tensors, and of the job; of what imports bring the counts too, theirs.
  void SetUpdateCounts(const std::vector<ImportSegment>& imports, std::vector<uint64_t> counts, Step step);
  // Whether storing the imports changes a tensor's blocks, or only what its parameters are rounded to: noise
  // is keyed by the count of updates.
  bool Changes(const std::vector<ImportSegment>& imports, const TensorInfo& tensor) const;
  bool RoundsAnew(const std::vector<ImportSegment>& imports, int tensor) const;
  void CountUpdates(const Verdict& verdict, const std::vector<ImportSegment>& imports);

  runtime::JobMemory* const memory_;
  runtime::OwnerRecords* const records_;
  WorkerPool* const pool_;
  BlockWorkCounters* const counters_;
  const kernels::OptimizerKind kind_;
  const kernels::JournaledUpdateFn update_;
  const kernels::SaveFn save_;
  const kernels::TwoPasses passes_;  // of nulls, or instead of update_
  bool stream_ = false;
  std::vector<UnitRange> ranges_;
  SnapshotKeeper snapshots_;
  int world_size_ = 0;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_BLOCK_WORK_H_

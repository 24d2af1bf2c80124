// An owner's side of open snapshots: cuts them, and keeps blocks as they were at the cut before they change
// (server/snapshot_pool.h).
//
//   SnapshotKeeper keeper(&memory, &records);
//   keeper.Look(ranges);                  // whenever the owner was rung: pools that were proposed are mapped
//                                         // and touched before the step that pays for them
//   keeper.Begin(step, false);            // before the blocks of a step change
//   if (keeper.any()) keeper.Preserve({b, b + 16});        // and before each of them does
//   keeper.Cut(verdict.proposals.snapshot, step);          // before DONE(step)
//
// Thread-compatible, one caller, but for Preserve, which is thread-safe for different blocks between Begin
// and the next call of anything else.
#ifndef SHERD_SERVER_SNAPSHOT_KEEPER_H_
#define SHERD_SERVER_SNAPSHOT_KEEPER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "core/partition.h"
#include "core/types.h"
#include "runtime/job_memory.h"
#include "server/snapshot_pool.h"

namespace sherd::server {

class SnapshotKeeper {
 public:
  // Blocks that are best kept in one call: what a core's cache holds until they are mutated.
  static constexpr int64_t kBlocksAtOnce = 16;

  // Both must outlive this; `records` are the owner's.
  SnapshotKeeper(runtime::JobMemory* memory, runtime::OwnerRecords* records);
  ~SnapshotKeeper();
  SnapshotKeeper(const SnapshotKeeper&) = delete;
  SnapshotKeeper& operator=(const SnapshotKeeper&) = delete;

  // Lets go of pools that were released, and, where trainers will soon change what they keep, maps those that
  // are proposed and begins to touch the places of `ranges` in the background. Cheap when there is no news.
  void Look(const std::vector<UnitRange>& ranges);

  // Finds the snapshots that have to keep their blocks before a mutation of `step`, or at the boundary after
  // it.
  void Begin(Step step, bool at_boundary);
  bool any() const { return !active_.empty(); }

  // Keeps `blocks`, which have the same planes, in each of these. Waits for room if a snapshot wants that;
  // else one that is full is marked as lost.
  void Preserve(BlockRange blocks);

  // Cuts the snapshots up to `last`, the newest that was decided, which are not cut yet and need not wait for
  // a later step, after `step`, whose update counts and buffers are in place. Repeatable.
  void Cut(uint64_t last, Step step);

 private:
  struct Opened;
  using List = std::vector<std::unique_ptr<Opened>>;
  std::unique_ptr<Opened> Open(runtime::SnapshotEntry& entry, uint64_t id);
  // Out of the lists, where a null stays in its place; null if it is in none.
  std::unique_ptr<Opened> Take(uint64_t id);
  bool AnyTrainer() const;
  void DropReleased(List* list);
  // Unmaps in the background: a large mapping takes a while.
  void Drop(std::unique_ptr<Opened> opened);

  runtime::JobMemory* const memory_;
  runtime::OwnerRecords* const records_;
  uint64_t seen_ = 0;  // newest proposal
  List coming_;        // mapped, not in use yet
  List active_;
  std::thread dropping_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOT_KEEPER_H_

// Which blocks change hands between two assignments of blocks to owners: the one planner behind resize,
// restore, replication and consolidation.
//
//   Assignment old = Assignment::Uniform(layout, 4), now = Assignment::Uniform(layout, 5);
//   absl::StatusOr<ReshardPlan> plan = PlanReshard(old, now);
//   plan->ForEachMove([&](const BlockMove& move) { ... });   // {unit, range, from, to}, in block order
//   plan->counts().blocks_moved * 1024;                       // bytes of one fp32 plane
//
// The plan is the intersection of two sorted lists of intervals: it moves exactly the blocks whose owner
// changes, each once, and no plan can move fewer. Its pieces are found by one sweep whenever somebody wants
// them, which is faster than to read them from a list: 10,000 units over 1,000 owners have 20 million. Units
// of one size that are cut evenly are alike, and are counted once.
//
// Values; thread-compatible. Pure.
#ifndef SHERD_CORE_RESHARD_PLAN_H_
#define SHERD_CORE_RESHARD_PLAN_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/layout.h"
#include "core/partition.h"
#include "core/types.h"

namespace sherd {

// Blocks of one unit and who has them.
struct OwnedBlocks {
  BlockRange blocks;
  Slot owner;
  friend bool operator==(const OwnedBlocks& a, const OwnedBlocks& b) {
    return a.blocks == b.blocks && a.owner == b.owner;
  }
};

// Gives every block of every unit one owner. A unit is cut either evenly among M slots (core/partition.h),
// which takes no memory per owner, or into explicit ranges, as it is while a resize moves it piece by piece.
class Assignment {
 public:
  // Every unit of `layout` evenly among `servers` slots. REQUIRES: 1 <= servers <= kMaxServers.
  static Assignment Uniform(const Layout& layout, int servers);

  // Explicit ranges per unit; unit u is units[u]. Empty ranges are dropped, neighbours of one owner joined.
  //   INVALID_ARGUMENT  the ranges of a unit are out of order, overlap or leave a gap, do not begin where the
  //   unit
  //                     before ended, or an owner is not in 0..kMaxServers-1. Names the unit and the values.
  static absl::StatusOr<Assignment> Create(const std::vector<std::vector<OwnedBlocks>>& units);

  int units() const { return static_cast<int>(units_.size()); }
  BlockRange unit(int u) const { return units_[u].blocks; }
  // Among how many unit `u` is cut evenly; 0: into explicit ranges.
  int even_servers(int u) const { return units_[u].servers; }

  // Cuts unit `u` evenly among `servers`, leaving the others as they are. REQUIRES: u and servers are valid.
  void CutEvenly(int u, int servers);

  // The owner of `block`. O(log units + log ranges). REQUIRES: 0 <= block < end of the last unit.
  Slot OwnerOf(int64_t block) const;

  // Walks the ranges of one unit in order; none is empty. Amortised O(1) a step (slots that own nothing of a
  // small unit are stepped over). Borrows the assignment.
  //   for (Assignment::Cursor c(assignment, u); !c.done(); c.Next()) Use(c.get());
  class Cursor {
   public:
    Cursor(const Assignment& assignment, int unit);
    bool done() const { return current_.blocks.begin == end_; }
    const OwnedBlocks& get() const { return current_; }
    void Next();

   private:
    OwnedBlocks current_;  // empty at the unit's end when done
    int64_t end_;
    const OwnedBlocks* explicit_ = nullptr;  // the range after the current one, or nullptr if cut evenly
    // Cut evenly: boundaries r*B/M follow from r to r+1 by quotient and running remainder, without division.
    int64_t quotient_ = 0;
    int64_t remainder_ = 0;
    int64_t running_ = 0;
    int64_t servers_ = 0;
  };

 private:
  struct Unit {
    BlockRange blocks;
    int servers = 0;   // cut evenly among these; 0: explicit
    size_t first = 0;  // explicit: explicit_[first, last)
    size_t last = 0;
  };

  std::vector<Unit> units_;
  std::vector<OwnedBlocks> explicit_;
};

// Blocks of one unit that one slot has before and one after; kept where they are the same.
struct BlockMove {
  int unit = 0;
  BlockRange blocks;
  Slot from;
  Slot to;
  friend bool operator==(const BlockMove& a, const BlockMove& b) {
    return a.unit == b.unit && a.blocks == b.blocks && a.from == b.from && a.to == b.to;
  }
};

// OK if both have the same units with the same blocks, else INVALID_ARGUMENT naming the first difference.
absl::Status CheckSameUnits(const Assignment& before, const Assignment& after);

// Calls fn(const BlockMove&) for every piece of unit `u`, in block order: the pieces tile the blocks, and a
// piece moves if from != to. Needs no memory, whatever the number of pieces. REQUIRES: CheckSameUnits is OK.
template <typename Fn>
void ForEachPieceOf(int u, const Assignment& before, const Assignment& after, Fn fn) {
  Assignment::Cursor from(before, u);
  Assignment::Cursor to(after, u);
  int64_t at = before.unit(u).begin;
  while (!from.done() && !to.done()) {
    const int64_t end = std::min(from.get().blocks.end, to.get().blocks.end);
    fn(BlockMove{u, {at, end}, from.get().owner, to.get().owner});
    at = end;
    if (from.get().blocks.end == end) from.Next();
    if (to.get().blocks.end == end) to.Next();
  }
}

// Of all units.
template <typename Fn>
void ForEachPiece(const Assignment& before, const Assignment& after, Fn fn) {
  for (int u = 0; u < before.units(); ++u) ForEachPieceOf(u, before, after, fn);
}

// Who gets which blocks from whom.
class ReshardPlan {
 public:
  struct Counts {
    int64_t moves = 0;  // pieces that change hands
    int64_t blocks_moved = 0;
    int64_t blocks_kept = 0;
  };

  const Counts& counts() const { return counts_; }
  // Bytes that change hands if a block has `bytes_per_block` of them (all planes together), on separate
  // hosts.
  int64_t bytes_moved(int64_t bytes_per_block) const { return counts_.blocks_moved * bytes_per_block; }

  // Calls fn(const BlockMove&) for the pieces that change hands, or that stay, in block order.
  template <typename Fn>
  void ForEachMove(Fn fn) const {
    ForEachPiece(before_, after_, [&fn](const BlockMove& piece) {
      if (piece.from != piece.to) fn(piece);
    });
  }
  template <typename Fn>
  void ForEachKept(Fn fn) const {
    ForEachPiece(before_, after_, [&fn](const BlockMove& piece) {
      if (piece.from == piece.to) fn(piece);
    });
  }

 private:
  friend absl::StatusOr<ReshardPlan> PlanReshard(Assignment before, Assignment after);
  ReshardPlan(Assignment before, Assignment after) : before_(std::move(before)), after_(std::move(after)) {}

  Assignment before_, after_;
  Counts counts_;
};

// The plan from `before` to `after`.
//   INVALID_ARGUMENT  they are not of one layout (CheckSameUnits).
absl::StatusOr<ReshardPlan> PlanReshard(Assignment before, Assignment after);

}  // namespace sherd

#endif  // SHERD_CORE_RESHARD_PLAN_H_

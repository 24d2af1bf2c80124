// What an owner of the simulation does to blocks: server/block_work, block by block and store by store.
#ifndef SHERD_TESTS_SIM_OWNER_BLOCKS_H_
#define SHERD_TESTS_SIM_OWNER_BLOCKS_H_

#include <vector>

#include "tests/sim/world.h"

namespace sherd::sim {

class OwnerBlocks {
 public:
  OwnerBlocks(World& world, HostMemory& memory, Slot slot)
      : w_(world), m_(memory), slot_(slot), page_(memory.owners[slot.value()]) {}

  // Puts back what a dead predecessor left half done.
  void Recover();
  // Ranks that the sums are over from now on.
  void SetWorld(int world_size) { world_size_ = world_size; }

  // Sums a part of a unit on all own blocks.
  void Reduce(int unit, int part, StepId id, const HostMap& hosts);
  // Sums what this host's ranks delivered of a part, for other hosts' owners.
  void Slice(int unit, int part, StepId id, const HostMap& hosts);
  // First pass of an optimizer by norms over own blocks: momentum moves, gradients become directions.
  void Move(const Verdict& v, const HostMap& hosts);
  // Brings own blocks to a verdict; snapshots keep what they need.
  void Apply(const Verdict& v, const std::vector<uint64_t>& imports, const HostMap& hosts);
  // Stores imports between steps.
  void Store(const std::vector<uint64_t>& imports, const HostMap& hosts);
  void CutSnapshots(uint64_t after, uint64_t last, Step step);

 private:
  BlockRange Own(const UnitShape& unit, const HostMap& hosts) const;
  void Copy(const Values& from, Values& to);
  void Copy(const Planes& from, Planes& to);
  bool LocalPart(int unit, int part, StepId id, int64_t block, Values* sum);
  Values PartOf(int unit, int part, StepId id, int64_t block);
  void Preserve(int64_t block, Step step, bool at_boundary);
  void SaveElement(const Planes& planes, int element, Undo& undo);
  void MoveBlock(int64_t block, Undo& undo);
  void Mutate(int64_t block, const Verdict& v, bool update, const std::vector<uint64_t>& imports, Undo* pass);
  void Overlay(int64_t block, const std::vector<uint64_t>& imports);
  bool Covered(int64_t block, const std::vector<uint64_t>& imports) const;
  double TrustOf(int64_t block) const;
  Undo& NextUndo() { return page_.undo[turn_ ^= 1]; }

  World& w_;
  HostMemory& m_;
  const Slot slot_;
  OwnerShared& page_;
  int turn_ = 0;
  int world_size_ = 0;
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_OWNER_BLOCKS_H_

// Who owns which blocks: of a unit of B blocks over M servers, slot r owns [rB/M, (r+1)B/M), rounded down.
//
//   Owned({0, 10}, Slot(1), 3)     // {3, 6}
//   OwnerOf({0, 10}, 5, 3)         // Slot(1)
//
// Sizes differ by at most one block, no padding grows with M, and an owner of a small unit may own nothing of
// it. Pure functions; thread-safe. Products are formed in 128 bits, so no layout overflows them.
#ifndef SHERD_CORE_PARTITION_H_
#define SHERD_CORE_PARTITION_H_

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/types.h"

namespace sherd {

// Servers a job may have: bounds what a request can make a coordinator allocate.
inline constexpr int kMaxServers = 65536;

// What `slot` owns of `unit`, as global blocks; possibly empty. Slots in order tile the unit.
// REQUIRES: servers >= 1; 0 <= slot < servers; unit.begin <= unit.end.
BlockRange Owned(BlockRange unit, Slot slot, int servers);

// The one slot whose Owned() holds `block`. REQUIRES: servers >= 1; unit.begin <= block < unit.end.
Slot OwnerOf(BlockRange unit, int64_t block, int servers);

// A piece of one unit.
struct UnitRange {
  int unit = 0;  // in Layout::units()
  BlockRange blocks;
  friend bool operator==(const UnitRange& a, const UnitRange& b) {
    return a.unit == b.unit && a.blocks == b.blocks;
  }
};

// All that `slot` owns, unit by unit in order; units of which it owns nothing are left out.
// REQUIRES: servers >= 1; 0 <= slot < servers.
std::vector<UnitRange> OwnedRanges(const Layout& layout, Slot slot, int servers);

}  // namespace sherd

#endif  // SHERD_CORE_PARTITION_H_

// On which host each slot is, and the ranges of blocks that follow from it.
//
//   HostMap map = *HostMap::Create({0, 0, 1});      // slots 0 and 1 on host 0, slot 2 on host 1
//   Owned({0, 10}, Slot(1), map)                    // {2, 5}: the second half of host 0's {0, 5}
//   SlicedBy({0, 10}, Slot(1), map)                 // {{7, 10}}: what slot 1 sums of the blocks of others
//
// Ownership goes in two levels (core/partition.h at each): host h of H holds [hB/H, (h+1)B/H) of a unit of B
// blocks, and the slots of a host, in slot order, divide its share in the same way. On one host this is
// Owned(unit, slot, servers), block for block.
//
// Hosts may stand in groups of S consecutive ones (HostGrid): then each group holds the whole, divided among
// its S hosts as above, and every block has an owner in each group, which all do the same to it (MiCS, Zhang
// et al., arXiv 2205.00119).
//
// Immutable once made; copies are cheap on one host. Thread-safe.
#ifndef SHERD_CORE_HOST_MAP_H_
#define SHERD_CORE_HOST_MAP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/layout.h"
#include "core/partition.h"
#include "core/types.h"

namespace sherd {

// Hosts of one job.
inline constexpr int kMaxHosts = 64;

// How many hosts, and how many of them make up a group. REQUIRES: group divides hosts.
struct HostGrid {
  int hosts = 1;
  int group = 1;

  int groups() const { return hosts / group; }
  int GroupOf(int host) const { return host / group; }
  // The host of `host`'s group that holds what `holder` holds in its own.
  int Counterpart(int holder, int host) const { return GroupOf(host) * group + holder % group; }
};

// What `host` holds of `unit`. REQUIRES: 0 <= host < grid.hosts.
inline BlockRange HostShare(BlockRange unit, int host, HostGrid grid) {
  return Owned(unit, Slot(host % grid.group), grid.group);
}

// What `host` does not hold of `unit`, before and behind what it does: in order, none empty.
std::vector<BlockRange> OthersShare(BlockRange unit, int host, HostGrid grid);

class HostMap {
 public:
  // All slots on host 0. REQUIRES: servers >= 1.
  static HostMap OneHost(int servers);
  // INVALID_ARGUMENT: no slots, a host outside 0..kMaxHosts-1, or one of 0..H-1 without a slot.
  static absl::StatusOr<HostMap> Create(std::vector<int32_t> host_of_slot);
  // The same slots, with their hosts in groups of `group`; 0: in one. REQUIRES: group divides hosts().
  HostMap Grouped(int group) const;

  int servers() const { return servers_; }
  int hosts() const { return hosts_; }
  HostGrid grid() const { return {hosts_, group_ > 0 ? group_ : hosts_}; }
  // REQUIRES of all: 0 <= slot < servers(), 0 <= host < hosts().
  int HostOf(Slot slot) const { return places_.empty() ? 0 : places_[slot.value()].host; }
  // The slot's position among those of its host.
  int IndexOf(Slot slot) const { return places_.empty() ? slot.value() : places_[slot.value()].index; }
  int slots_on(int host) const { return slots_.empty() ? servers_ : static_cast<int>(slots_[host].size()); }
  Slot SlotAt(int host, int index) const { return slots_.empty() ? Slot(index) : slots_[host][index]; }

  // "0,0,1": the host of each slot.
  std::string ToString() const;
  friend bool operator==(const HostMap& a, const HostMap& b) {
    return a.servers_ == b.servers_ && a.grid().group == b.grid().group && a.ToString() == b.ToString();
  }
  friend bool operator!=(const HostMap& a, const HostMap& b) { return !(a == b); }

 private:
  struct Place {
    int32_t host = 0, index = 0;
  };
  HostMap() = default;

  int servers_ = 1, hosts_ = 1;
  int group_ = 0;
  std::vector<Place> places_;             // by slot; empty on one host
  std::vector<std::vector<Slot>> slots_;  // by host; empty on one host
};

// As in core/partition.h, in two levels. OwnerOf: the one in the first group.
BlockRange Owned(BlockRange unit, Slot slot, const HostMap& map);
Slot OwnerOf(BlockRange unit, int64_t block, const HostMap& map);
std::vector<UnitRange> OwnedRanges(const Layout& layout, Slot slot, const HostMap& map);

// Of the blocks of `unit` that other hosts own (with several groups: all), those for which `slot` sums what
// its own host's ranks delivered: the slots of a host, in slot order, divide them evenly. At most two ranges,
// in order, none empty.
std::vector<BlockRange> SlicedBy(BlockRange unit, Slot slot, const HostMap& map);

// Which ranks are on which host: consecutive ones, host 0's first.
class RankMap {
 public:
  // REQUIRES: ranks[h] >= 0. Empty: one host with `world_size` ranks.
  RankMap(std::vector<int32_t> ranks_of_host, int world_size);
  int hosts() const { return static_cast<int>(first_.size()) - 1; }
  // Ranks [first(h), end(h)).
  int first(int host) const { return first_[host]; }
  int end(int host) const { return first_[host + 1]; }
  int world_size() const { return first_.back(); }
  bool Has(int host, Rank rank) const { return rank.value() >= first(host) && rank.value() < end(host); }
  int HostOf(Rank rank) const;

 private:
  std::vector<int32_t> first_;  // and the end of the last
};

}  // namespace sherd

#endif  // SHERD_CORE_HOST_MAP_H_

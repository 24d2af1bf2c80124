#include "core/host_map.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sherd {

HostMap HostMap::OneHost(int servers) {
  ABSL_RAW_CHECK(servers >= 1, "no servers");
  HostMap map;
  map.servers_ = servers;
  return map;
}

absl::StatusOr<HostMap> HostMap::Create(std::vector<int32_t> host_of_slot) {
  const auto bad = [&](auto... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("hosts of slots [", absl::StrJoin(host_of_slot, ","), "]: ", what...));
  };
  if (host_of_slot.empty() || host_of_slot.size() > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat("an assignment has ", host_of_slot.size(), " slots, not 1..", kMaxServers));
  }
  const auto [least, most] = std::minmax_element(host_of_slot.begin(), host_of_slot.end());
  if (*least < 0 || *most >= kMaxHosts) return bad("a host is not in 0..", kMaxHosts - 1);
  HostMap map = OneHost(static_cast<int>(host_of_slot.size()));
  map.hosts_ = *most + 1;
  if (map.hosts_ == 1) return map;
  map.slots_.resize(map.hosts_);
  for (size_t m = 0; m < host_of_slot.size(); ++m) {
    std::vector<Slot>& slots = map.slots_[host_of_slot[m]];
    map.places_.push_back({host_of_slot[m], static_cast<int32_t>(slots.size())});
    slots.push_back(Slot(static_cast<int32_t>(m)));
  }
  for (int h = 0; h < map.hosts_; ++h) {
    if (map.slots_[h].empty()) return bad("host ", h, " has none; every host needs a server");
  }
  return map;
}

HostMap HostMap::Grouped(int group) const {
  ABSL_RAW_CHECK(group >= 0 && (group == 0 || hosts_ % group == 0), "groups of hosts are not even");
  HostMap map = *this;
  map.group_ = group;
  return map;
}

std::string HostMap::ToString() const {
  std::vector<int> hosts(servers_, 0);
  for (size_t m = 0; m < places_.size(); ++m) hosts[m] = places_[m].host;
  return absl::StrJoin(hosts, ",");
}

std::vector<BlockRange> OthersShare(BlockRange unit, int host, HostGrid grid) {
  const BlockRange own = HostShare(unit, host, grid);
  std::vector<BlockRange> others;
  if (unit.begin < own.begin) others.push_back({unit.begin, own.begin});
  if (own.end < unit.end) others.push_back({own.end, unit.end});
  return others;
}

BlockRange Owned(BlockRange unit, Slot slot, const HostMap& map) {
  const int host = map.HostOf(slot);
  return Owned(HostShare(unit, host, map.grid()), Slot(map.IndexOf(slot)), map.slots_on(host));
}

Slot OwnerOf(BlockRange unit, int64_t block, const HostMap& map) {
  const int host = OwnerOf(unit, block, map.grid().group).value();
  return map.SlotAt(host, OwnerOf(HostShare(unit, host, map.grid()), block, map.slots_on(host)).value());
}

std::vector<UnitRange> OwnedRanges(const Layout& layout, Slot slot, const HostMap& map) {
  std::vector<UnitRange> ranges;
  const std::vector<UnitInfo>& units = layout.units();
  for (size_t u = 0; u < units.size(); ++u) {
    const BlockRange blocks = Owned(units[u].blocks, slot, map);
    if (!blocks.empty()) ranges.push_back({static_cast<int>(u), blocks});
  }
  return ranges;
}

std::vector<BlockRange> SlicedBy(BlockRange unit, Slot slot, const HostMap& map) {
  const int host = map.HostOf(slot);
  const bool all = map.grid().groups() > 1;
  const BlockRange own = all ? BlockRange{unit.begin, unit.begin} : HostShare(unit, host, map.grid());
  // The others' blocks as if they stood in a row, without the host's own.
  const BlockRange sliced =
      Owned({unit.begin, unit.end - own.size()}, Slot(map.IndexOf(slot)), map.slots_on(host));
  std::vector<BlockRange> ranges;
  const BlockRange before{sliced.begin, std::min(sliced.end, own.begin)};
  const BlockRange after{std::max(sliced.begin, own.begin) + own.size(), sliced.end + own.size()};
  if (!before.empty()) ranges.push_back(before);
  if (!after.empty()) ranges.push_back(after);
  return ranges;
}

RankMap::RankMap(std::vector<int32_t> ranks_of_host, int world_size) : first_({0}) {
  if (ranks_of_host.empty()) ranks_of_host = {world_size};
  for (const int32_t ranks : ranks_of_host) first_.push_back(first_.back() + ranks);
  ABSL_RAW_CHECK(first_.back() == world_size, "the hosts' ranks are not the world's");
}

int RankMap::HostOf(Rank rank) const {
  return static_cast<int>(std::upper_bound(first_.begin() + 1, first_.end() - 1, rank.value()) -
                          (first_.begin() + 1));
}

}  // namespace sherd

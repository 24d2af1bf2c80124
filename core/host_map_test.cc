#include "core/host_map.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(HostMap, OneHostIsThePartition) {
  for (int servers = 1; servers <= 8; ++servers) {
    const HostMap map = HostMap::OneHost(servers);
    EXPECT_EQ(map, *HostMap::Create(std::vector<int32_t>(servers, 0)));
    for (int64_t blocks = 0; blocks <= 20; ++blocks) {
      const BlockRange unit{7, 7 + blocks};
      for (int m = 0; m < servers; ++m) {
        EXPECT_EQ(Owned(unit, Slot(m), map), Owned(unit, Slot(m), servers));
        EXPECT_TRUE(SlicedBy(unit, Slot(m), map).empty());
      }
      for (int64_t b = unit.begin; b < unit.end; ++b) {
        EXPECT_EQ(OwnerOf(unit, b, map), OwnerOf(unit, b, servers));
      }
    }
  }
}

// Every assignment of up to 5 slots to up to 3 hosts, and small units: the slots tile each host's share, and
// the slices of each host tile what is not its own.
TEST(HostMap, SmallWorlds) {
  for (int slots = 1; slots <= 5; ++slots) {
    int all = 1;
    for (int m = 0; m < slots; ++m) all *= 3;
    for (int code = 0; code < all; ++code) {
      std::vector<int32_t> hosts;
      for (int m = 0, c = code; m < slots; ++m, c /= 3) hosts.push_back(c % 3);
      const absl::StatusOr<HostMap> map = HostMap::Create(hosts);
      if (!map.ok()) continue;
      for (int64_t blocks = 0; blocks <= 9; ++blocks) {
        const BlockRange unit{3, 3 + blocks};
        SCOPED_TRACE(absl::StrCat(map->ToString(), " of ", blocks, " blocks"));
        std::vector<int> owner(blocks, -1);
        for (int m = 0; m < slots; ++m) {
          const BlockRange own = Owned(unit, Slot(m), *map);
          const BlockRange share = HostShare(unit, map->HostOf(Slot(m)), map->grid());
          for (int64_t b = own.begin; b < own.end; ++b) {
            ASSERT_EQ(owner[b - unit.begin], -1);
            owner[b - unit.begin] = m;
            ASSERT_EQ(OwnerOf(unit, b, *map), Slot(m));
            ASSERT_TRUE(share.begin <= b && b < share.end);
          }
        }
        for (const int m : owner) ASSERT_NE(m, -1);
        for (int h = 0; h < map->hosts(); ++h) {
          std::vector<int> times(blocks, 0);
          const BlockRange share = HostShare(unit, h, map->grid());
          for (int i = 0; i < map->slots_on(h); ++i) {
            ASSERT_EQ(map->IndexOf(map->SlotAt(h, i)), i);
            int64_t before = unit.begin;
            for (const BlockRange& r : SlicedBy(unit, map->SlotAt(h, i), *map)) {
              ASSERT_FALSE(r.empty());
              ASSERT_LE(before, r.begin);
              before = r.end;
              for (int64_t b = r.begin; b < r.end; ++b) ++times[b - unit.begin];
            }
          }
          for (int64_t b = unit.begin; b < unit.end; ++b) {
            ASSERT_EQ(times[b - unit.begin], share.begin <= b && b < share.end ? 0 : 1);
          }
        }
      }
    }
  }
}

// Every split of up to 4 hosts into groups: each tiles the unit, alike, and every host sums all of it.
TEST(HostMap, Groups) {
  for (const std::vector<int32_t>& hosts :
       std::vector<std::vector<int32_t>>{{0, 1}, {0, 1, 0}, {0, 1, 2}, {0, 1, 2, 3}, {3, 0, 1, 2, 1, 3}}) {
    const HostMap all = *HostMap::Create(hosts);
    for (int group = 1; group < all.hosts(); ++group) {
      if (all.hosts() % group != 0) continue;
      const HostMap map = all.Grouped(group);
      EXPECT_NE(map, all);
      EXPECT_EQ(map.Grouped(0), all);
      const HostGrid grid = map.grid();
      for (int64_t blocks = 0; blocks <= 9; ++blocks) {
        const BlockRange unit{3, 3 + blocks};
        SCOPED_TRACE(absl::StrCat(map.ToString(), " in groups of ", group, ", ", blocks, " blocks"));
        std::vector<std::vector<int>> owners(grid.groups(), std::vector<int>(blocks, 0));
        std::vector<std::vector<int>> slices(grid.hosts, std::vector<int>(blocks, 0));
        for (int m = 0; m < map.servers(); ++m) {
          const int host = map.HostOf(Slot(m));
          const BlockRange own = Owned(unit, Slot(m), map);
          for (int64_t b = own.begin; b < own.end; ++b) {
            ++owners[grid.GroupOf(host)][b - unit.begin];
            const int first = map.HostOf(OwnerOf(unit, b, map));
            ASSERT_EQ(grid.GroupOf(first), 0);
            ASSERT_EQ(grid.Counterpart(first, host), host);
          }
          for (const BlockRange& r : SlicedBy(unit, Slot(m), map)) {
            for (int64_t b = r.begin; b < r.end; ++b) ++slices[host][b - unit.begin];
          }
        }
        for (const std::vector<int>& each : owners) ASSERT_EQ(each, std::vector<int>(blocks, 1));
        for (const std::vector<int>& each : slices) ASSERT_EQ(each, std::vector<int>(blocks, 1));
        for (int h = 0; h < grid.hosts; ++h) {
          ASSERT_EQ(HostShare(unit, h, grid), HostShare(unit, grid.Counterpart(h, 0), grid));
          int64_t others = 0;
          for (const BlockRange& r : OthersShare(unit, h, grid)) others += r.size();
          ASSERT_EQ(others + HostShare(unit, h, grid).size(), blocks);
        }
      }
    }
  }
}

TEST(HostMap, WhatIsNone) {
  const std::vector<int32_t> cases[] = {{}, {-1}, {64}, {1}, {0, 2}};
  for (const std::vector<int32_t>& hosts : cases) {
    EXPECT_EQ(HostMap::Create(hosts).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_NE(HostMap::Create({0, 2}).status().message().find("host 1 has none"), std::string::npos);
}

TEST(RankMap, ConsecutiveRanks) {
  const RankMap one({}, 3);
  EXPECT_EQ(one.hosts(), 1);
  EXPECT_EQ(one.HostOf(Rank(2)), 0);
  const RankMap map({2, 1, 3}, 6);
  int rank = 0;
  for (const int host : {0, 0, 1, 2, 2, 2}) {
    EXPECT_EQ(map.HostOf(Rank(rank)), host);
    EXPECT_TRUE(map.Has(host, Rank(rank)));
    EXPECT_FALSE(map.Has((host + 1) % 3, Rank(rank)));
    ++rank;
  }
}

}  // namespace
}  // namespace sherd

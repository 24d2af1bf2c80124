#include "core/partition.h"

#include <iostream>
#include <random>

#include "gtest/gtest.h"

namespace sherd {
namespace {

// Slots tile the unit, sizes differ by at most one, and OwnerOf agrees with Owned.
void ExpectTiles(BlockRange unit, int servers) {
  int64_t at = unit.begin;
  for (int s = 0; s < servers; ++s) {
    const BlockRange owned = Owned(unit, Slot(s), servers);
    ASSERT_EQ(owned.begin, at);
    ASSERT_GE(owned.size(), unit.size() / servers);
    ASSERT_LE(owned.size(), unit.size() / servers + 1);
    at = owned.end;
    if (owned.empty()) continue;
    ASSERT_EQ(OwnerOf(unit, owned.begin, servers), Slot(s));
    ASSERT_EQ(OwnerOf(unit, owned.end - 1, servers), Slot(s));
  }
  ASSERT_EQ(at, unit.end);
}

TEST(PartitionTest, Example) {
  EXPECT_EQ(Owned({0, 10}, Slot(1), 3), (BlockRange{3, 6}));
  EXPECT_EQ(OwnerOf({0, 10}, 5, 3), Slot(1));
}

TEST(PartitionTest, EveryBlockOwnedOnceInSmallWorlds) {
  for (int64_t offset : {0, 7}) {
    for (int64_t blocks = 0; blocks <= 40; ++blocks) {
      for (int servers = 1; servers <= 50; ++servers) {
        const BlockRange unit{offset, offset + blocks};
        ExpectTiles(unit, servers);
        for (int64_t b = unit.begin; b < unit.end; ++b) {
          const BlockRange owned = Owned(unit, OwnerOf(unit, b, servers), servers);
          ASSERT_TRUE(owned.begin <= b && b < owned.end) << blocks << " blocks, " << servers << " servers";
        }
      }
    }
  }
}

TEST(PartitionTest, LargestLayoutsDoNotOverflow) {
  const uint32_t seed = std::random_device()();
  std::cout << "seed " << seed << std::endl;
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 20; ++i) {
    const int64_t begin = static_cast<int64_t>(rng() >> 3);
    const int64_t size = static_cast<int64_t>(rng() >> (1 + rng() % 40)) / 4;
    ExpectTiles({begin, begin + size}, 1 + static_cast<int>(rng() % 3000));
  }
  ExpectTiles({0, int64_t{1} << 62}, kMaxServers);
}

TEST(PartitionTest, OwnedRangesCoverTheLayoutAndSkipEmptyPieces) {
  const absl::StatusOr<Layout> layout =
      Layout::Create({{{"a", {5000}}, {"b", {}}}, {{"tiny", {3}}}, {}, {{"none", {0}}}, {{"c", {100, 100}}}});
  ASSERT_TRUE(layout.ok()) << layout.status();
  for (int servers = 1; servers <= 64; ++servers) {
    std::vector<int> owners(layout->total_blocks(), 0);
    for (int s = 0; s < servers; ++s) {
      for (const UnitRange& piece : OwnedRanges(*layout, Slot(s), servers)) {
        EXPECT_FALSE(piece.blocks.empty());
        EXPECT_GE(piece.blocks.begin, layout->units()[piece.unit].blocks.begin);
        EXPECT_LE(piece.blocks.end, layout->units()[piece.unit].blocks.end);
        for (int64_t b = piece.blocks.begin; b < piece.blocks.end; ++b) ++owners[b];
      }
    }
    for (int count : owners) ASSERT_EQ(count, 1) << servers << " servers";
  }
}

}  // namespace
}  // namespace sherd

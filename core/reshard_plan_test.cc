#include "core/reshard_plan.h"

#include <chrono>
#include <iostream>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

// A layout whose units have these numbers of blocks.
Layout LayoutOf(const std::vector<int64_t>& unit_blocks) {
  std::vector<std::vector<TensorSpec>> units;
  for (int64_t blocks : unit_blocks) {
    units.push_back({{absl::StrCat("t", units.size()), {blocks * kBlockElements}}});
  }
  absl::StatusOr<Layout> layout = Layout::Create(std::move(units));
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

std::vector<Slot> Owners(const Assignment& assignment) {
  std::vector<Slot> owners;
  for (int u = 0; u < assignment.units(); ++u) {
    EXPECT_EQ(static_cast<int64_t>(owners.size()), assignment.unit(u).begin);
    for (Assignment::Cursor c(assignment, u); !c.done(); c.Next()) {
      EXPECT_EQ(c.get().blocks.begin, static_cast<int64_t>(owners.size()));
      EXPECT_FALSE(c.get().blocks.empty());
      owners.resize(c.get().blocks.end, c.get().owner);
    }
    EXPECT_EQ(static_cast<int64_t>(owners.size()), assignment.unit(u).end);
  }
  return owners;
}

std::vector<BlockMove> Moves(const ReshardPlan& plan) {
  std::vector<BlockMove> moves;
  plan.ForEachMove([&](const BlockMove& move) { moves.push_back(move); });
  return moves;
}

std::vector<BlockMove> Kept(const ReshardPlan& plan) {
  std::vector<BlockMove> kept;
  plan.ForEachKept([&](const BlockMove& piece) { kept.push_back(piece); });
  return kept;
}

// The plan turns the owners before into the owners after, moves a block exactly if its owner changes, and so
// moves the fewest; every block is in one piece.
void ExpectLeast(const Assignment& before, const Assignment& after) {
  const absl::StatusOr<ReshardPlan> plan = PlanReshard(before, after);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<Slot> owners = Owners(before);
  const std::vector<Slot> wanted = Owners(after);
  ASSERT_EQ(owners.size(), wanted.size());
  int64_t changed = 0;
  for (size_t b = 0; b < owners.size(); ++b) changed += owners[b] != wanted[b];
  std::vector<int> covered(owners.size(), 0);
  int64_t moves = 0;
  for (const BlockMove& move : Moves(*plan)) {
    ++moves;
    ASSERT_NE(move.from, move.to);
    for (int64_t b = move.blocks.begin; b < move.blocks.end; ++b) {
      ASSERT_EQ(owners[b], move.from);
      owners[b] = move.to;
      ++covered[b];
    }
  }
  for (const BlockMove& kept : Kept(*plan)) {
    ASSERT_EQ(kept.from, kept.to);
    for (int64_t b = kept.blocks.begin; b < kept.blocks.end; ++b) {
      ASSERT_EQ(owners[b], kept.to);
      ++covered[b];
    }
  }
  for (int count : covered) ASSERT_EQ(count, 1);
  ASSERT_TRUE(owners == wanted);
  ASSERT_EQ(plan->counts().moves, moves);
  ASSERT_EQ(plan->counts().blocks_moved, changed);
  ASSERT_EQ(plan->counts().blocks_moved + plan->counts().blocks_kept, static_cast<int64_t>(owners.size()));
  ASSERT_EQ(plan->bytes_moved(1024), changed * 1024);
}

std::vector<Slot> Carry(std::vector<Slot> owners, const ReshardPlan& plan) {
  for (const BlockMove& move : Moves(plan)) {
    for (int64_t b = move.blocks.begin; b < move.blocks.end; ++b) owners[b] = move.to;
  }
  return owners;
}

TEST(ReshardPlanTest, Example) {
  const Layout layout = LayoutOf({4, 2});
  const absl::StatusOr<ReshardPlan> plan =
      PlanReshard(Assignment::Uniform(layout, 2), Assignment::Uniform(layout, 3));
  ASSERT_TRUE(plan.ok());
  // Unit 0: 0 0 1 1 -> 0 1 2 2; unit 1: 0 1 -> 1 2.
  const std::vector<BlockMove> moves = {{0, {1, 2}, Slot(0), Slot(1)},
                                        {0, {2, 4}, Slot(1), Slot(2)},
                                        {1, {4, 5}, Slot(0), Slot(1)},
                                        {1, {5, 6}, Slot(1), Slot(2)}};
  EXPECT_TRUE(Moves(*plan) == moves);
  EXPECT_TRUE(Kept(*plan) == (std::vector<BlockMove>{{0, {0, 1}, Slot(0), Slot(0)}}));
  EXPECT_EQ(plan->counts().blocks_moved, 5);
}

TEST(ReshardPlanTest, UniformCursorIsThePartition) {
  for (int64_t blocks = 0; blocks <= 40; ++blocks) {
    const Layout layout = LayoutOf({3, blocks, 0});
    for (int servers = 1; servers <= 50; ++servers) {
      const Assignment assignment = Assignment::Uniform(layout, servers);
      const std::vector<Slot> owners = Owners(assignment);
      for (size_t b = 0; b < owners.size(); ++b) {
        const BlockRange unit = layout.units()[layout.UnitAt(b)].blocks;
        ASSERT_EQ(owners[b], OwnerOf(unit, b, servers));
        ASSERT_EQ(owners[b], assignment.OwnerOf(b));
      }
    }
  }
}

TEST(ReshardPlanTest, LeastInEverySmallWorld) {
  for (int64_t blocks = 0; blocks <= 40; ++blocks) {
    const Layout layout = LayoutOf({blocks});
    for (int before = 1; before <= 8; ++before) {
      for (int after = 1; after <= 8; ++after) {
        ExpectLeast(Assignment::Uniform(layout, before), Assignment::Uniform(layout, after));
        if (HasFatalFailure()) FAIL() << blocks << " blocks, " << before << " -> " << after;
      }
    }
  }
}

TEST(ReshardPlanTest, ThereAndBackIsTheIdentity) {
  for (int64_t blocks = 0; blocks <= 40; ++blocks) {
    const Layout layout = LayoutOf({blocks, 40 - blocks});
    for (int n = 1; n <= 8; ++n) {
      const Assignment first = Assignment::Uniform(layout, n);
      EXPECT_EQ(PlanReshard(first, first)->counts().blocks_moved, 0);
      for (int m = 1; m <= 8; ++m) {
        const Assignment second = Assignment::Uniform(layout, m);
        const ReshardPlan there = *PlanReshard(first, second);
        const ReshardPlan back = *PlanReshard(second, first);
        ASSERT_EQ(there.counts().blocks_moved, back.counts().blocks_moved);
        ASSERT_TRUE(Carry(Carry(Owners(first), there), back) == Owners(first));
      }
    }
  }
}

TEST(ReshardPlanTest, RandomExplicitAndMixedAssignments) {
  const uint32_t seed = std::random_device()();
  std::cout << "seed " << seed << std::endl;
  std::mt19937 rng(seed);
  for (int round = 0; round < 100; ++round) {
    std::vector<int64_t> sizes(1 + rng() % 20);
    // Often two of one size, which are counted alike.
    for (int64_t& size : sizes) size = rng() % 4 == 0 ? sizes[0] : rng() % 3000;
    const Layout layout = LayoutOf(sizes);
    const auto draw = [&] {
      if (rng() % 3 == 0) return Assignment::Uniform(layout, 1 + rng() % 2000);
      std::vector<std::vector<OwnedBlocks>> units;
      for (const UnitInfo& unit : layout.units()) {
        units.emplace_back();
        for (int64_t at = unit.blocks.begin; at < unit.blocks.end;) {
          const int64_t end = std::min<int64_t>(unit.blocks.end, at + rng() % 500);
          units.back().push_back({{at, end}, Slot(rng() % 5)});
          at = end;
        }
      }
      absl::StatusOr<Assignment> assignment = Assignment::Create(units);
      EXPECT_TRUE(assignment.ok()) << assignment.status();
      if (rng() % 2 == 0) assignment->CutEvenly(rng() % assignment->units(), 1 + rng() % 9);
      return *assignment;
    };
    const Assignment before = draw();
    const Assignment after = draw();
    ExpectLeast(before, after);
    if (HasFatalFailure()) FAIL() << "round " << round;
    const std::vector<Slot> owners = Owners(after);
    for (size_t b = 0; b < owners.size(); b += 1 + rng() % 97) ASSERT_EQ(after.OwnerOf(b), owners[b]);
  }
}

TEST(ReshardPlanTest, RefusesRangesThatDoNotTile) {
  const auto expect = [](std::vector<std::vector<OwnedBlocks>> units, const std::string& words) {
    const absl::StatusOr<Assignment> assignment = Assignment::Create(units);
    EXPECT_EQ(assignment.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(assignment.status().message(), words)) << assignment.status();
  };
  expect({{{{1, 2}, Slot(0)}}}, "unit 0: blocks [1, 2) of owner 0 should begin at 0");
  expect({{{{0, 2}, Slot(0)}}, {{{3, 4}, Slot(1)}}}, "unit 1: blocks [3, 4) of owner 1 should begin at 2");
  expect({{{{0, 2}, Slot(0)}, {{1, 3}, Slot(1)}}}, "should begin at 2");
  expect({{{{0, -1}, Slot(0)}}}, "[0, -1)");
  expect({{{{0, 2}, Slot(-1)}}}, "owner -1");
  expect({{{{0, 2}, Slot(65536)}}}, "owner 65536");
}

TEST(ReshardPlanTest, RefusesAnotherLayout) {
  const Assignment two = Assignment::Uniform(LayoutOf({2, 3}), 2);
  const absl::Status units = PlanReshard(two, Assignment::Uniform(LayoutOf({5}), 2)).status();
  EXPECT_EQ(units.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(units.message(), "2 units before, 1 after")) << units;
  const absl::Status blocks = PlanReshard(two, Assignment::Uniform(LayoutOf({2, 4}), 2)).status();
  EXPECT_TRUE(absl::StrContains(blocks.message(), "unit 1 has blocks [2, 5) before, [2, 6) after")) << blocks;
}

TEST(ReshardPlanTest, TenThousandUnitsOverAThousandOwners) {
  const Layout layout = LayoutOf(std::vector<int64_t>(10000, 4099));
  const Assignment before = Assignment::Uniform(layout, 1024);
  const Assignment after = Assignment::Uniform(layout, 1000);
  const auto start = std::chrono::steady_clock::now();
  int64_t moved = 0;
  int64_t pieces = 0;
  ForEachPiece(before, after, [&](const BlockMove& piece) {
    ++pieces;
    if (piece.from != piece.to) moved += piece.blocks.size();
  });
  const double ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  std::cout << pieces << " pieces in " << ms << " ms" << std::endl;
  EXPECT_EQ(moved % 10000, 0);  // all units are alike
  EXPECT_GT(moved, 0);
}

}  // namespace
}  // namespace sherd

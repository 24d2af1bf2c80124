#include "core/gather_plan.h"

#include <random>
#include <set>

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr uint64_t kFirst = UnitValues::Of(Step(1), 0);

class Host {
 public:
  Host(int ranks, std::vector<int64_t> elements, int64_t max_live, bool keep = false)
      : plan_(elements, max_live, keep) {
    for (int r = 0; r < ranks; ++r) ranks_.push_back({true, 0, std::vector<UnitWant>(elements.size())});
  }
  void Want(int rank, int unit, UnitWant::How how, uint64_t values = kFirst) {
    UnitWant& w = ranks_[rank].wants[unit];
    if (w.values != values) w = {values, 0, UnitWant::kNot};
    if (w.how == UnitWant::kNot && how != UnitWant::kNot) ++w.times;
    w.how = how;
  }
  void Drop(int rank, int unit) { ranks_[rank].wants[unit].how = UnitWant::kNot; }
  // Everything that was started arrives at once. The units that were started.
  std::vector<int> Look() {
    const GatherPlan::Effects now = plan_.Look(ranks_);
    std::vector<int> started;
    for (const int u : now.free) {
      EXPECT_EQ(here_.erase(u), 1u);
      for (const GatherPlan::Rank& r : ranks_) EXPECT_EQ(r.wants[u].how, UnitWant::kNot) << u;
    }
    for (const GatherPlan::Start& s : now.start) {
      started.push_back(s.unit);
      here_.insert(s.unit);
      EXPECT_EQ(plan_.Arrived(s.unit), s.values);
    }
    return started;
  }

  GatherPlan plan_;
  std::vector<GatherPlan::Rank> ranks_;
  std::set<int> here_;
};

using Units = std::vector<int>;

TEST(GatherPlan, OneRankGathersAndReleases) {
  Host host(1, {10, 20, 0}, 100);
  host.Want(0, 0, UnitWant::kNow);
  EXPECT_EQ(host.Look(), Units({0}));
  EXPECT_EQ(host.Look(), Units());
  host.Drop(0, 0);
  host.Look();
  EXPECT_TRUE(host.here_.empty());
  host.Want(0, 0, UnitWant::kNow);
  EXPECT_EQ(host.Look(), Units({0}));
  EXPECT_EQ(host.plan_.peak_live(), 10);
}

TEST(GatherPlan, ARankThatIsBehindFindsWhatAnotherLetGoOf) {
  Host host(2, {10}, 100);
  host.Want(0, 0, UnitWant::kNow);
  EXPECT_EQ(host.Look(), Units({0}));
  host.Drop(0, 0);
  EXPECT_EQ(host.Look(), Units());
  EXPECT_EQ(host.here_.size(), 1u);
  host.Want(1, 0, UnitWant::kNow);
  EXPECT_EQ(host.Look(), Units());
  host.Drop(1, 0);
  host.Look();
  EXPECT_TRUE(host.here_.empty());
}

TEST(GatherPlan, NothingIsKeptForWhoHasRecordedItsStepOrGone) {
  for (const bool gone : {false, true}) {
    Host host(2, {10}, 100);
    host.Want(0, 0, UnitWant::kNow);
    host.Look();
    host.Drop(0, 0);
    if (gone) {
      host.ranks_[1].attached = false;
    } else {
      host.ranks_[1].recorded = 1;
    }
    host.Look();
    EXPECT_TRUE(host.here_.empty()) << gone;
  }
}

TEST(GatherPlan, AheadWaitsForRoomAndNowTakesIt) {
  Host host(2, {10, 10, 10}, 20);
  host.Want(0, 0, UnitWant::kNow);
  host.Want(0, 1, UnitWant::kAhead);
  host.Want(0, 2, UnitWant::kAhead);
  EXPECT_EQ(host.Look(), Units({0, 1}));
  host.Drop(0, 0);  // rank 1 has not used it: it stays, and is in the way
  EXPECT_EQ(host.Look(), Units());
  host.Want(0, 2, UnitWant::kNow);
  EXPECT_EQ(host.Look(), Units({2}));
  EXPECT_EQ(host.here_, std::set<int>({1, 2}));
  EXPECT_EQ(host.plan_.peak_live(), 20);
}

TEST(GatherPlan, NewValuesComeInThePlaceOfOld) {
  Host host(1, {10}, 100);
  host.Want(0, 0, UnitWant::kNow);
  host.Look();
  host.Want(0, 0, UnitWant::kNow, UnitValues::Of(Step(2), 0));
  EXPECT_EQ(host.Look(), Units({0}));
  EXPECT_EQ(host.plan_.live(), 10);
  EXPECT_EQ(host.plan_.values(0), UnitValues::Of(Step(2), 0));
}

TEST(GatherPlan, WhoKeepsGathersOnceUntilValuesChange) {
  Host host(1, {10, 20}, /*max_live=*/0, /*keep=*/true);
  for (uint64_t step = 1; step <= 3; ++step) {
    const uint64_t values = UnitValues::Of(Step(step), 0);
    for (const int unit : {0, 1, 1, 0}) {  // forward, backward
      const bool first = host.plan_.values(unit) != values;
      host.Want(0, unit, UnitWant::kNow, values);
      EXPECT_EQ(host.Look(), first ? Units({unit}) : Units());
      EXPECT_EQ(host.plan_.values(unit), values);
      host.Drop(0, unit);
      EXPECT_EQ(host.Look(), Units());
    }
    host.ranks_[0].recorded = step;
    EXPECT_EQ(host.Look(), Units());
    EXPECT_EQ(host.here_, std::set<int>({0, 1}));  // the memory stays for the next values
  }
  EXPECT_EQ(host.plan_.peak_live(), 30);
}

// The limit would never let what is wanted ahead come, as what is kept is not given back.
TEST(GatherPlan, WhoKeepsGathersAheadWhateverTheLimit) {
  Host host(1, {10, 20, 30}, /*max_live=*/10, /*keep=*/true);
  host.Want(0, 0, UnitWant::kNow);
  host.Want(0, 1, UnitWant::kAhead);
  host.Want(0, 2, UnitWant::kAhead);
  EXPECT_EQ(host.Look(), Units({0, 1, 2}));
}

// One rank or two, each at its own pace through forward and backward of two units, values of the second step
// once all ranks have recorded the first: every order of their wants. Each unit comes once a step, the right
// values are there whenever they are needed now, and nothing is freed.
TEST(GatherPlan, WhoKeepsGathersOnceInEveryOrder) {
  constexpr int kSteps = 2, kUses = 4;
  const auto unit_of = [](int use) { return use % kUses < 2 ? use % kUses : 3 - use % kUses; };
  for (const int ranks : {1, 2}) {
    const int choices = ranks == 1 ? 1 : 1 << (2 * kSteps * kUses);
    for (int order = 0; order < choices; ++order) {
      Host host(ranks, {10, 10}, /*max_live=*/10 * (order % 3), /*keep=*/true);
      std::vector<int> at(ranks, 0);
      size_t started = 0;
      bool possible = true;
      for (int turn = 0; turn < ranks * kSteps * kUses && possible; ++turn) {
        const int r = (order >> turn) & 1;
        const int step = at[r] / kUses + 1;
        possible = at[r] < kSteps * kUses;
        for (int other = 0; other < ranks; ++other) possible &= at[other] >= (step - 1) * kUses;
        if (!possible) break;
        const uint64_t values = UnitValues::Of(Step(step), 0);
        const int u = unit_of(at[r]++);
        host.Want(r, u, UnitWant::kNow, values);
        started += host.Look().size();
        ASSERT_EQ(host.plan_.values(u), values) << order;
        host.Drop(r, u);
        if (at[r] % kUses == 0) host.ranks_[r].recorded = step;
        ASSERT_EQ(host.Look(), Units());
      }
      if (possible) {
        ASSERT_EQ(started, 2u * kSteps) << order;
      }
    }
  }
}

TEST(GatherPlan, WhatIsNeededFirstIsStartedFirst) {
  Host host(2, {10, 10, 10, 10}, 30);
  const auto want = [&](int rank, int unit, UnitWant::How how, uint64_t turn) {
    host.Want(rank, unit, how);
    host.ranks_[rank].wants[unit].turn = turn;
  };
  // As in forward: the layout's order is that of backward.
  want(0, 3, UnitWant::kNow, 1);
  want(0, 2, UnitWant::kAhead, 2);
  want(0, 1, UnitWant::kAhead, 3);
  want(1, 0, UnitWant::kNow, 9);
  want(1, 1, UnitWant::kAhead, 10);
  EXPECT_EQ(host.Look(), Units({3, 0, 2}));  // and no room for the last
  host.Drop(0, 3);
  want(1, 3, UnitWant::kNow, 12);
  host.Drop(1, 0);
  host.Look();
  EXPECT_EQ(host.Look(), Units());
  host.Drop(1, 3);
  EXPECT_EQ(host.Look(), Units({1}));
}

TEST(GatherPlan, WantsAreAWord) {
  const UnitWant want{UnitValues::Of(Step(123456789), 300), 77, UnitWant::kNow};
  const UnitWant back = UnitWant::Of(want.word());
  EXPECT_EQ(back.values, want.values);
  EXPECT_EQ(back.times, 77u);
  EXPECT_EQ(back.how, UnitWant::kNow);
  EXPECT_EQ(UnitValues::StepOf(back.values), 123456789u);
}

// Ranks that go through the units at their own pace: whatever one needs now is there, nothing beyond the
// limit is there but for that, and with room for the distance between them each unit comes once a pass.
TEST(GatherPlan, RanksAtAnyPace) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    const int units = 8, ranks = 1 + static_cast<int>(random() % 3);
    const bool roomy = random() % 2 == 0;
    Host host(ranks, std::vector<int64_t>(units, 10), roomy ? 10 * units : 20);
    std::vector<int> at(ranks, 0);  // uses so far: forward, then backward
    size_t started = 0;
    const auto unit_of = [&](int use) { return use < units ? use : 2 * units - 1 - use; };
    const int uses = 2 * units;
    while (std::any_of(at.begin(), at.end(), [&](int a) { return a < uses; })) {
      const int r = static_cast<int>(random() % ranks);
      if (at[r] >= uses) continue;
      const int u = unit_of(at[r]++);
      host.Want(r, u, UnitWant::kNow);
      if (at[r] < uses && unit_of(at[r]) != u && random() % 2 == 0) {
        host.Want(r, unit_of(at[r]), UnitWant::kAhead);
        started += host.Look().size();
        host.Drop(r, unit_of(at[r]));
        if (host.ranks_[r].wants[unit_of(at[r])].times > 0) --host.ranks_[r].wants[unit_of(at[r])].times;
      } else {
        started += host.Look().size();
      }
      ASSERT_EQ(host.here_.count(u), 1u);
      host.Drop(r, u);
      if (at[r] == uses) host.ranks_[r].recorded = 1;
    }
    started += host.Look().size();
    EXPECT_TRUE(host.here_.empty());
    EXPECT_EQ(host.plan_.live(), 0);
    EXPECT_LE(host.plan_.peak_live(), roomy ? 10 * units : 20);
    if (roomy) {
      EXPECT_LE(started, static_cast<size_t>(uses + units)) << round;
    }
  }
}

}  // namespace
}  // namespace sherd

#include "client/world_share.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

using Rules = WorldShare::Rules;

// All samples of a step, as the ranks of a world compute them.
std::vector<int64_t> Covered(const Rules& rules, int world) {
  std::vector<int64_t> samples;
  for (int r = 0; r < world; ++r) {
    WorldShare share(rules);
    share.Enter(world, r);
    for (int micro = 0; micro < share.micros(); ++micro) {
      const SampleRange range = share.Samples(micro);
      for (int64_t i = range.begin; i < range.end; ++i) samples.push_back(i);
    }
  }
  std::sort(samples.begin(), samples.end());
  return samples;
}

std::vector<int64_t> UpTo(int64_t n) {
  std::vector<int64_t> all(n);
  for (int64_t i = 0; i < n; ++i) all[i] = i;
  return all;
}

TEST(WorldShareTest, TheRanksOfAnyWorldComputeEachSampleOnce) {
  for (const int world : {1, 2, 3, 4, 7}) {
    for (const int accumulation : {1, 2, 5}) {
      Rules rules;
      rules.global_batch = 24;
      rules.accumulation = accumulation;
      EXPECT_EQ(Covered(rules, world), UpTo(24)) << world << " ranks";
    }
  }
}

TEST(WorldShareTest, VirtualRanksAreTheSameMicroBatchesInOneOrderAtEveryWorld) {
  Rules rules;
  rules.global_batch = 24, rules.virtual_ranks = 8, rules.seed = 5;
  ASSERT_TRUE(WorldShare::Check(rules, 2).ok());
  WorldShare alone(rules);
  alone.Enter(1, 0);
  ASSERT_EQ(alone.micros(), 8);
  for (const int world : {1, 2, 4, 8}) {
    EXPECT_EQ(Covered(rules, world), UpTo(24));
    // The owners add up part 0 of ranks 0, 1, ..., then part 1 of them: what one rank alone delivers in turn.
    int v = 0;
    for (int part = 0; part < 8 / world; ++part) {
      for (int r = 0; r < world; ++r, ++v) {
        WorldShare share(rules);
        share.Enter(world, r);
        EXPECT_EQ(share.Samples(part).begin, alone.Samples(v).begin);
        EXPECT_EQ(share.Samples(part).end, alone.Samples(v).end);
        EXPECT_EQ(share.Seed(3, part), alone.Seed(3, v));
        EXPECT_EQ(share.nominal_samples(), 3);
      }
    }
  }
  EXPECT_TRUE(WorldShare::CheckWorld(8, 4).ok());
  EXPECT_FALSE(WorldShare::CheckWorld(8, 3).ok());
  EXPECT_FALSE(WorldShare::CheckWorld(8, 16).ok());
}

TEST(WorldShareTest, TheMicroBatchMayBeKeptInsteadAndRatesFollow) {
  Rules rules;
  rules.global_batch = 8, rules.first_world = 2;
  rules.on_resize = OnResize::kKeepMicroBatch, rules.rate = RateRule::kLinear;
  WorldShare share(rules);
  share.Enter(2, 0);
  EXPECT_EQ(share.global_batch(), 8);
  EXPECT_EQ(share.rate_factor(), 1);
  share.Enter(6, 5);
  EXPECT_EQ(share.global_batch(), 24);
  EXPECT_EQ(share.Samples(0).size(), 4);
  EXPECT_EQ(share.rate_factor(), 3);
  EXPECT_EQ(share.nominal_samples(), 4) << "what a sample counts does not change with the world";
  rules.rate = RateRule::kSquareRoot;
  WorldShare root(rules);
  root.Enter(8, 0);
  EXPECT_EQ(root.rate_factor(), 2);
}

TEST(WorldShareTest, RulesThatCannotBeKeptAreNamed) {
  const auto why = [](Rules rules, int stage) {
    return std::string(WorldShare::Check(rules, stage).message());
  };
  Rules rules;
  rules.global_batch = 24;
  rules.virtual_ranks = 6;
  EXPECT_NE(why(rules, 2).find("power of two"), std::string::npos);
  rules.virtual_ranks = 16;
  EXPECT_NE(why(rules, 2).find("do not divide"), std::string::npos);
  rules.virtual_ranks = 8;
  EXPECT_NE(why(rules, 1).find("stage is 1"), std::string::npos);
  rules.accumulation = 2;
  EXPECT_NE(why(rules, 2).find("accumulation is 2"), std::string::npos);
  rules.virtual_ranks = 0, rules.accumulation = 0;
  EXPECT_NE(why(rules, 2).find("accumulation is 0"), std::string::npos);
}

}  // namespace
}  // namespace sherd

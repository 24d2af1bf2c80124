#include "tests/sim/sim.h"

#include <ctime>
#include <iostream>

#include "gtest/gtest.h"

namespace sherd::sim {
namespace {

TEST(SimTest, SeedsHold) {
  constexpr int kSeeds = 400;
  const std::clock_t start = std::clock();
  uint64_t events = 0;
  int kills = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const Options options{static_cast<uint64_t>(seed)};
    const Result r = RunSeed(options);
    EXPECT_EQ(r.failure, "") << "seed " << seed << "; replay: " << ReplayCommand(options);
    events += r.events;
    kills += r.kills;
  }
  const double ms = 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / kSeeds;
  std::cout << "seeds 1.." << kSeeds << ": " << ms << " ms, " << events / kSeeds << " events and "
            << static_cast<double>(kills) / kSeeds << " kills each on average" << std::endl;
}

TEST(SimTest, ASeedIsOneRun) {
  for (uint64_t seed : {3, 11, 42}) {
    const Result a = RunSeed({seed}), b = RunSeed({seed});
    EXPECT_EQ(a.events, b.events);
    EXPECT_EQ(a.kills, b.kills);
  }
}

class PlantedBugTest : public testing::TestWithParam<int> {};

TEST_P(PlantedBugTest, IsFound) {
  const Bug bug = static_cast<Bug>(GetParam());
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    const Result r = RunSeed({seed, bug});
    if (r.failure.empty()) continue;
    std::cout << BugName(bug) << " is found with seed " << seed << ": " << r.failure << std::endl;
    return;
  }
  ADD_FAILURE() << BugName(bug) << " goes unnoticed for 500 seeds";
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugTest,
                         testing::Range(static_cast<int>(Bug::kNone) + 1, static_cast<int>(Bug::kBugs)),
                         [](const auto& info) { return BugName(static_cast<Bug>(info.param)); });

}  // namespace
}  // namespace sherd::sim

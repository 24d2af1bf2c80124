#include "tests/sim/sim.h"

#include <ctime>
#include <iostream>
#include <random>

#include "gtest/gtest.h"

namespace sherd::sim {
namespace {

void Hold(uint64_t first, int seeds) {
  const std::clock_t start = std::clock();
  uint64_t events = 0;
  int kills = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    const Options options{seed};
    const Result r = RunSeed(options);
    EXPECT_EQ(r.failure, "") << "seed " << seed << "; replay: " << ReplayCommand(options);
    events += r.events;
    kills += r.kills;
  }
  const double ms = 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / seeds;
  std::cout << "seeds " << first << ".." << first + seeds - 1 << ": " << ms << " ms, " << events / seeds
            << " events and " << static_cast<double>(kills) / seeds << " kills each on average" << std::endl;
}

TEST(SimTest, SeedsHold) { Hold(1, 400); }

// Others in every run; what fails prints how to replay it.
TEST(SimTest, NewSeedsHold) { Hold(1 + std::random_device()(), 400); }

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
  for (uint64_t seed = 1; seed <= 4000; ++seed) {
    const Result r = RunSeed({seed, bug});
    if (r.failure.empty()) continue;
    std::cout << BugName(bug) << " is found with seed " << seed << ": " << r.failure << std::endl;
    return;
  }
  ADD_FAILURE() << BugName(bug) << " goes unnoticed for 4000 seeds";
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugTest,
                         testing::Range(static_cast<int>(Bug::kNone) + 1, static_cast<int>(Bug::kBugs)),
                         [](const auto& info) { return BugName(static_cast<Bug>(info.param)); });

}  // namespace
}  // namespace sherd::sim

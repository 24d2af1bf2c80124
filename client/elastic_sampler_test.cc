#include "client/elastic_sampler.h"

#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "client/batch.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(ElasticSamplerTest, APassIsEachSampleOnceInAnOrderOfItsOwn) {
  for (const int64_t size : {1, 2, 3, 4, 5, 16, 17, 1000, 4097}) {
    ElasticSampler sampler(size, 7);
    std::vector<int64_t> orders[2];
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<bool> seen(size);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t index = sampler.Index(pass * size + i);
        ASSERT_GE(index, 0);
        ASSERT_LT(index, size);
        EXPECT_FALSE(seen[index]) << index << " twice in pass " << pass;
        seen[index] = true;
        orders[pass].push_back(index);
      }
    }
    EXPECT_TRUE(size <= 16 || orders[0] != orders[1]);
  }
}

// Ranks come and go, the global batch with them; processes die between two steps and in them, and go on from
// what the last step committed; steps are given up.
TEST(ElasticSamplerTest, EverySampleOncePerPassWhateverHappens) {
  std::mt19937_64 random(std::random_device{}());
  const uint64_t seed = random();
  std::cout << "seed " << seed << std::endl;
  random.seed(seed);
  for (int run = 0; run < 20; ++run) {
    const int64_t size = 50 + static_cast<int64_t>(random() % 200);
    std::string blob;
    std::vector<int> used(size);
    uint64_t total = 0;
    while (total < 5 * static_cast<uint64_t>(size)) {
      const int64_t world = 1 + static_cast<int64_t>(random() % 5);
      const int64_t batch = 1 + static_cast<int64_t>(random() % 40);
      const bool given_up = random() % 5 == 0;
      std::vector<int64_t> step;
      std::string committed;
      for (int64_t r = 0; r < world; ++r) {
        // Each rank as a new process would be.
        ElasticSampler sampler(size, 3);
        ASSERT_TRUE(blob.empty() || sampler.Restore(blob).ok());
        const SampleRange mine = ShareOf(batch, world, r, 1, 0);
        for (int64_t i = mine.begin; i < mine.end; ++i) step.push_back(sampler.Index(i));
        committed = sampler.StateAfter(batch);
        sampler.Advance(batch);
        EXPECT_EQ(sampler.State(), committed);
      }
      if (given_up) continue;
      blob = committed;
      total += static_cast<uint64_t>(batch);
      for (const int64_t index : step) ++used[index];
    }
    ElasticSampler end(size, 3);
    ASSERT_TRUE(end.Restore(blob).ok());
    EXPECT_EQ(end.position(), total);
    for (const int n : used) {
      EXPECT_GE(n, static_cast<int>(total / size));
      EXPECT_LE(n, static_cast<int>((total + size - 1) / size));
    }
  }
}

TEST(ElasticSamplerTest, AStateOfAnotherKindIsRefusedAndChangesNothing) {
  ElasticSampler sampler(10, 1);
  sampler.Advance(4);
  const std::string state = sampler.State();
  EXPECT_EQ(ElasticSampler(11, 1).Restore(state).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ElasticSampler(10, 2).Restore(state).code(), absl::StatusCode::kFailedPrecondition);
  for (const char* bad :
       {"", "x", "elastic-sampler/1 size=10 seed=1", "elastic-sampler/1 size=10 seed=1 position=-3"}) {
    EXPECT_EQ(sampler.Restore(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(sampler.State(), state);
}

}  // namespace
}  // namespace sherd

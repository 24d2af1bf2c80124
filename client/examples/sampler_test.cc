#include "client/examples/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "client/batch.h"

namespace sherd::examples {
namespace {

TEST(ShareOf, CoversEachBatchOnceInOrderAndEvenly) {
  const uint32_t seed = 20240229;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const int64_t batch = random() % 200, world = 1 + random() % 17, micros = 1 + random() % 9;
    int64_t next = 0;
    int64_t least_rank = batch, most_rank = 0, least = batch, most = 0;
    for (int64_t rank = 0; rank < world; ++rank) {
      int64_t of_rank = 0;
      for (int64_t micro = 0; micro < micros; ++micro) {
        const SampleRange range = ShareOf(batch, world, rank, micros, micro);
        ASSERT_EQ(range.begin, next);
        ASSERT_GE(range.end, range.begin);
        next = range.end;
        of_rank += range.size();
        least = std::min(least, range.size());
        most = std::max(most, range.size());
      }
      least_rank = std::min(least_rank, of_rank);
      most_rank = std::max(most_rank, of_rank);
    }
    ASSERT_EQ(next, batch);
    ASSERT_LE(most - least, 1) << batch << " over " << world << " x " << micros;
    ASSERT_LE(most_rank - least_rank, 1) << batch << " over " << world << " x " << micros;
  }
}

TEST(Sampler, DependsOnSeedStepAndIndexAlone) {
  const Sampler sampler(1, 10000, 128);
  EXPECT_EQ(sampler.Offset(3, 4), Sampler(1, 10000, 128).Offset(3, 4));
  std::set<int64_t> seen;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    for (uint64_t step = 1; step <= 3; ++step) {
      for (int64_t i = 0; i < 3; ++i) seen.insert(Sampler(seed, int64_t{1} << 40, 128).Offset(step, i));
    }
  }
  EXPECT_EQ(seen.size(), 27u);
  // The samples of every run ever made hang on this: a change is a change of format.
  EXPECT_EQ(sampler.Offset(1, 0), 3372);
}

TEST(Sampler, ReachesEveryOffsetAndNoOther) {
  const Sampler sampler(7, 138, 128);  // windows of 129 bytes at 0 .. 9
  std::vector<int> hits(10);
  for (uint64_t step = 1; step <= 1000; ++step) {
    for (int64_t i = 0; i < 10; ++i) {
      const int64_t offset = sampler.Offset(step, i);
      ASSERT_GE(offset, 0);
      ASSERT_LT(offset, 10);
      ++hits[offset];
    }
  }
  for (int n : hits) EXPECT_NEAR(n, 1000, 150);  // five deviations
}

TEST(SamplerState, ComesBackAsItWas) {
  SamplerState state;
  state.seed = ~uint64_t{0};
  state.step = 17;
  state.global_batch = 8;
  state.context = 128;
  state.text_crc = 0xdeadbeef;
  const absl::StatusOr<SamplerState> back = SamplerState::Parse(state.Serialize());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->Serialize(), state.Serialize());
  EXPECT_EQ(back->seed, state.seed);
  EXPECT_EQ(back->step, 17u);
  EXPECT_EQ(back->text_crc, 0xdeadbeef);
}

TEST(SamplerState, RefusesEverythingElse) {
  const std::string good = SamplerState().Serialize();
  for (size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(SamplerState::Parse(good.substr(0, n)).ok()) << n;
  EXPECT_FALSE(SamplerState::Parse(good + " more=1").ok());
  EXPECT_FALSE(SamplerState::Parse("gpt-sampler/2" + good.substr(13)).ok());
}

TEST(CheckResume, NamesTheFieldThatDiffers) {
  SamplerState saved;
  saved.seed = 1;
  saved.step = 40;
  saved.global_batch = 8;
  saved.context = 128;
  saved.text_crc = 5;
  SamplerState mine = saved;
  mine.step = 0;
  EXPECT_TRUE(CheckResume(saved, mine).ok());
  mine.context = 64;
  const absl::Status status = CheckResume(saved, mine);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("--context 128"), std::string::npos) << status;
  EXPECT_NE(status.message().find("64"), std::string::npos) << status;
  mine = saved;
  mine.text_crc = 6;
  EXPECT_NE(CheckResume(saved, mine).message().find("--text"), std::string::npos);
  mine = saved;
  mine.seed = 2;
  EXPECT_FALSE(CheckResume(saved, mine).ok());
  mine = saved;
  mine.global_batch = 9;
  EXPECT_FALSE(CheckResume(saved, mine).ok());
}

}  // namespace
}  // namespace sherd::examples

#include "client/config/elastic_batch.h"

#include <vector>

#include "gtest/gtest.h"

namespace sherd::config {
namespace {

// What DeepSpeed's own functions answer; batch 0: an error there, or a share that no micro-batch divides.
TEST(ElasticBatch, AsDeepSpeed) {
  struct Case {
    int64_t max_batch;
    std::vector<int64_t> micro_batches;
    int64_t min_ranks, max_ranks;
    bool prefer_larger;
    double version;
    int64_t ranks_per_host;
    int world_size;
    int64_t batch, micro;
  };
  for (const Case& c : std::vector<Case>{
           {2000, {2, 4, 6}, 1, 10000, true, 0.1, 1, 8, 1680, 6},
           {2000, {2, 4, 6}, 1, 10000, true, 0.1, 1, 7, 1680, 6},
           {10000, {8, 12, 16, 17}, 32, 1500, true, 0.1, 1, 300, 0, 0},
           {50000, {12, 17, 1}, 4, 64, false, 0.1, 1, 1, 0, 0},
           {20, {16, 8, 13}, 1, 64, true, 0.1, 1, 2, 16, 8},
           {20, {6, 3, 5, 15}, 2, 64, true, 0.1, 1, 2, 18, 3},
           {2000, {6, 10}, 3, 64, true, 0.1, 1, 8, 1440, 10},
           {64, {13, 10}, 4, 256, true, 0.2, 4, 3, 60, 10},
           {500, {1, 11, 3}, 6, 2000, true, 0.2, 2, 4, 500, 1},
           {2000, {12, 13, 1, 15}, 1, 64, true, 0.1, 1, 2, 1680, 15},
           {2000, {12, 17, 12, 17}, 3, 1000, false, 0.2, 1, 1, 1989, 17},
           {100, {3, 7, 11, 17}, 3, 1000, false, 0.1, 1, 6, 84, 7},
           {50000, {6, 2, 3, 13}, 1, 1000, false, 0.1, 1, 4, 32760, 13},
           {64, {5, 2, 2, 16}, 3, 64, true, 0.1, 1, 12, 60, 5},
           {500, {4, 6, 14, 12}, 2, 1000, true, 0.1, 1, 6, 480, 4},
           {100, {17, 15}, 16, 4000, true, 0.2, 4, 2, 90, 15},
           {64, {13}, 4, 128, true, 0.2, 2, 6, 0, 0},
           {500, {3, 12, 2}, 6, 2000, false, 0.2, 2, 8, 480, 12},
           {50000, {11, 6, 1}, 8, 2000, true, 0.2, 2, 12, 40320, 6},
           {50000, {12, 9, 12}, 4, 1000, false, 0.2, 1, 3, 49968, 12},
           {100, {17, 6}, 8, 256, false, 0.2, 4, 8, 96, 6},
           {64, {6, 17, 14, 10}, 3, 64, true, 0.1, 1, 6, 60, 10},
           {64, {8, 6}, 1, 64, false, 0.2, 1, 1, 48, 8},
           {100, {6, 16, 7}, 4, 4000, true, 0.2, 4, 1, 98, 7},
           {100, {8, 12}, 4, 4000, false, 0.2, 4, 8, 96, 12},
           {100, {2, 10, 4}, 6, 128, true, 0.2, 2, 12, 96, 4},
           {64, {15, 5, 6}, 4, 64, true, 0.2, 1, 8, 48, 6},
           {100, {13}, 1, 1000, true, 0.2, 1, 2, 78, 13},
           {500, {10, 16, 13, 13}, 4, 2000, true, 0.2, 2, 3, 480, 16},
           {20, {16, 10, 5}, 4, 1000, true, 0.1, 1, 1, 0, 0},
           {500, {13, 1}, 4, 64, true, 0.2, 1, 3, 498, 1},
           {50000, {10, 17, 1}, 8, 128, true, 0.2, 2, 3, 49998, 1},
           {500, {4, 7, 1, 14}, 16, 4000, true, 0.2, 4, 8, 496, 1},
           {50000, {10, 15}, 1, 1000, true, 0.2, 1, 8, 37800, 15},
           {500, {10, 5, 6, 16}, 4, 64, true, 0.2, 1, 2, 500, 10},
           {500, {3, 3, 1}, 3, 1000, true, 0.2, 1, 12, 360, 3},
           {100, {8}, 1, 1000, true, 0.1, 1, 6, 96, 8},
           {20, {14, 6}, 1, 64, true, 0.1, 1, 8, 0, 0},
           {50000, {9}, 1, 1000, false, 0.1, 1, 2, 45360, 9},
           {500, {14}, 4, 4000, false, 0.2, 4, 3, 462, 14},
       }) {
    ElasticRequest r;
    r.max_batch = c.max_batch;
    r.micro_batches = c.micro_batches;
    r.min_ranks = c.min_ranks;
    r.max_ranks = c.max_ranks;
    r.prefer_larger = c.prefer_larger;
    r.by_hosts = c.version == 0.2;
    r.ranks_per_host = c.ranks_per_host;
    const auto sizes = ElasticBatchSizes(r, c.world_size);
    SCOPED_TRACE(testing::Message() << c.max_batch << " on " << c.world_size);
    ASSERT_EQ(sizes.ok(), c.batch > 0) << sizes.status();
    if (!sizes.ok()) continue;
    EXPECT_EQ(sizes->train, c.batch);
    EXPECT_EQ(sizes->micro, c.micro);
    EXPECT_EQ(sizes->train, sizes->micro * sizes->accumulation * c.world_size);
  }
}

TEST(ElasticBatch, ErrorsSayWhichNumbersOfTrainersDivide) {
  ElasticRequest r;
  r.by_hosts = false;
  r.max_ranks = 8;
  const auto sizes = ElasticBatchSizes(r, 11);
  ASSERT_FALSE(sizes.ok());
  EXPECT_NE(std::string(sizes.status().message()).find("1, 2, 3, 4, 5, 6, 7, 8"), std::string::npos)
      << sizes.status();
  r.micro_batches = {5000};
  EXPECT_NE(std::string(ElasticBatchSizes(r, 1).status().message()).find("remove it"), std::string::npos);
}

TEST(ElasticBatch, LargeSearchesEnd) {
  ElasticRequest r;
  r.max_batch = kMaxElasticBatch;
  r.micro_batches = {1, 999999937, 7, 720720};
  r.max_ranks = 1000000000;
  EXPECT_TRUE(ElasticBatchSizes(r, 4096).ok());
}

}  // namespace
}  // namespace sherd::config

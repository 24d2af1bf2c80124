#include "server/worker_pool.h"

#include <vector>

#include "gtest/gtest.h"

namespace sherd::server {
namespace {

TEST(WorkerPoolTest, EachIndexOnceByAWorkerThatDoesOneThingAtATime) {
  for (int workers : {1, 2, 5}) {
    WorkerPool pool(workers);
    ASSERT_EQ(pool.workers(), workers);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(count);
      std::vector<std::atomic<int>> busy(workers);
      pool.Run(count, [&](int worker, int64_t i) {
        EXPECT_EQ(busy[worker].fetch_add(1), 0);
        seen[i].fetch_add(1);
        busy[worker].fetch_sub(1);
      });
      for (const std::atomic<int>& s : seen) EXPECT_EQ(s.load(), 1);
    }
  }
}

}  // namespace
}  // namespace sherd::server

// What a host answers when copies of the state are compared, and who of several is apart. The comparison
// itself, of real hosts: tests/hosts/verify_test.py.
#include "server/state_copies.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/crc32c.h"
#include "runtime/test_root.h"
#include "server/snapshot_reader.h"
#include "server/snapshot_table.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using Votes = std::vector<int>;

constexpr uint64_t kId = 1;
bool GoOn() { return true; }

TEST(ApartTest, WhoDiffersFromMoreThanHalf) {
  EXPECT_EQ(Apart({4, 5}, {7, 7}), Votes{});
  EXPECT_EQ(Apart({4, 5}, {7, 8}), (Votes{4, 5}));
  EXPECT_EQ(Apart({4, 5, 6}, {7, 8, 7}), Votes{5});
  EXPECT_EQ(Apart({4, 5, 6}, {7, 8, 9}), (Votes{4, 5, 6}));
  EXPECT_EQ(Apart({4, 5, 6, 7}, {1, 2, 1, 2}), (Votes{4, 5, 6, 7}));
  EXPECT_EQ(Apart({4, 5, 6, 7, 8}, {1, 2, 1, 3, 1}), (Votes{5, 7}));
}

class SumShareTest : public ::testing::TestWithParam<int> {
 protected:
  SumShareTest() {
    for (int h = 0; h < GetParam(); ++h) {
      hosts_.push_back(std::make_unique<TestHost>(root_.path(), h, GetParam()));
      JobMemory& memory = *hosts_.back()->memory;
      EXPECT_TRUE(memory.BeginFirstAssignment(1, HostMap::OneHost(1)).ok());
      for (int p = 0; p < memory.planes(); ++p) {
        for (int64_t i = 0; i < memory.plane_blocks(p) * kBlockElements; ++i)
          memory.plane(p)[i] = static_cast<float>(1000000 * p + i);
      }
      PoolOrder order;
      order.id = kId;
      order.plane_mask = (1 << memory.planes()) - 1;
      order.pool_blocks = memory.layout().total_blocks();
      order.idle_timeout = absl::Seconds(60);
      order.token = "t";
      EXPECT_TRUE(OpenPool(memory, order).ok());
      absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(memory, kId);
      EXPECT_TRUE(pool.ok()) << pool.status();
      pool->SaveAtCut(memory, Step(0), LossScale());
      FindSnapshot(memory.control(), kId)->cut_plus_1 = 1;
    }
    request_.set_snapshot_id(kId);
  }

  static uint32_t SumOf(const JobMemory& memory, const StatePart& part) {
    const float* const values = memory.plane(part.plane) + part.tensor->blocks.begin * kBlockElements;
    return runtime::Crc32c(values + part.begin, (part.end - part.begin) * sizeof(float));
  }

  runtime::TestRoot root_{"/dev/shm"};
  std::vector<std::unique_ptr<TestHost>> hosts_;
  v1::SumShareRequest request_;
};

TEST_P(SumShareTest, AllThatAHostOwnsPieceByPiece) {
  int64_t elements = 0;
  for (const std::unique_ptr<TestHost>& host : hosts_) {
    JobMemory& memory = *host->memory;
    const absl::StatusOr<v1::SumShareResponse> sums = SumShareHere(memory, request_, GoOn);
    ASSERT_TRUE(sums.ok()) << sums.status();
    const std::vector<StatePart> parts = PartsOf(memory, memory.place().index, 4194304);
    ASSERT_EQ(sums->crc32c_size(), static_cast<int>(parts.size()));
    EXPECT_EQ(sums->update_counts_size(), static_cast<int>(memory.layout().tensors().size()));
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(sums->crc32c(static_cast<int>(i)), SumOf(memory, parts[i]));
      elements += parts[i].end - parts[i].begin;
    }
  }
  // Three planes of what is trained, and one of the rest, each element by one host.
  EXPECT_EQ(elements, 3 * (60 * 50 + 7 + 1 + 11 * 13 * 17) + 900);
}

TEST_P(SumShareTest, APartInSmallerPieces) {
  for (const std::unique_ptr<TestHost>& host : hosts_) {
    JobMemory& memory = *host->memory;
    for (const StatePart& part : PartsOf(memory, memory.place().index, 1500)) {
      for (int64_t step : {1, 700, 1499, 1500, 100000}) {
        v1::SumShareRequest::Part& asked = *request_.mutable_part();
        asked.set_tensor(part.tensor->index);
        asked.set_plane(part.plane);
        asked.set_begin(part.begin);
        asked.set_end(part.end);
        asked.set_step(step);
        const absl::StatusOr<v1::SumShareResponse> sums = SumShareHere(memory, request_, GoOn);
        ASSERT_TRUE(sums.ok()) << sums.status();
        int n = 0;
        for (int64_t at = part.begin; at < part.end; at += step, ++n) {
          ASSERT_LT(n, sums->crc32c_size());
          EXPECT_EQ(sums->crc32c(n),
                    SumOf(memory, {part.tensor, part.plane, at, std::min(part.end, at + step)}));
        }
        EXPECT_EQ(sums->crc32c_size(), n);
      }
    }
  }
}

TEST_P(SumShareTest, WhatIsNotThereIsNamed) {
  JobMemory& memory = *hosts_.back()->memory;
  const StatePart good = PartsOf(memory, memory.place().index, 4194304)[0];
  const auto code = [&](int tensor, int plane, int64_t begin, int64_t end, int64_t step) {
    v1::SumShareRequest::Part& asked = *request_.mutable_part();
    asked.set_tensor(tensor);
    asked.set_plane(plane);
    asked.set_begin(begin);
    asked.set_end(end);
    asked.set_step(step);
    return SumShareHere(memory, request_, GoOn).status().code();
  };
  const int t = good.tensor->index;
  EXPECT_EQ(code(t, good.plane, good.begin, good.end, 1000), absl::StatusCode::kOk);
  for (const auto& [tensor, plane, begin, end, step] :
       std::vector<std::tuple<int, int, int64_t, int64_t, int64_t>>{
           {-1, 0, good.begin, good.end, 1},
           {1000, 0, good.begin, good.end, 1},
           {t, -1, good.begin, good.end, 1},
           {t, memory.planes(), good.begin, good.end, 1},
           {t, 0, good.begin - 1, good.end, 1},
           {t, 0, good.begin, good.end + 1, 1},
           {t, 0, good.end, good.begin, 1},
           {t, 0, good.begin, good.begin, 1},
           {t, 0, good.begin, good.end, 0},
           {t, 0, good.begin, good.end, -1},
           {5, 1, 0, 1, 1}}) {  // not trained: no moments
    EXPECT_EQ(code(tensor, plane, begin, end, step), absl::StatusCode::kOutOfRange)
        << tensor << " " << plane << " " << begin << " " << end << " " << step;
  }
  request_.clear_part();
  EXPECT_EQ(SumShareHere(memory, request_, [] { return false; }).status().code(),
            absl::StatusCode::kCancelled);
  request_.set_step(1);
  EXPECT_EQ(SumShareHere(memory, request_, GoOn).status().code(), absl::StatusCode::kNotFound);
  request_.set_snapshot_id(2);
  EXPECT_EQ(SumShareHere(memory, request_, GoOn).status().code(), absl::StatusCode::kNotFound);
}

INSTANTIATE_TEST_SUITE_P(Hosts, SumShareTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace sherd::server

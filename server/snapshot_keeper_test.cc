// An owner's side of snapshots, as other owners of the host cut them.
#include "server/snapshot_keeper.h"

#include <vector>

#include "gtest/gtest.h"
#include "runtime/test_root.h"
#include "server/snapshot_reader.h"
#include "server/snapshot_table.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

constexpr uint64_t kId = 1;

class SnapshotKeeperTest : public ::testing::Test {
 protected:
  SnapshotKeeperTest() {
    EXPECT_TRUE(memory().BeginFirstAssignment(1, HostMap::OneHost(1)).ok());
    memory().trainer(Rank(0)).Set({1, 1}, 1, runtime::MemberEntry::kAttached);
    memory().plane(0)[0] = 1;
  }

  runtime::JobMemory& memory() { return *host_.memory; }
  runtime::OwnerRecords& records() { return **memory().owner(Slot(0)); }
  std::vector<UnitRange> Ranges() { return {{0, memory().layout().units()[0].blocks}}; }

  void Propose() {
    PoolOrder order;
    order.id = kId;
    order.plane_mask = 1;
    order.pool_blocks = memory().layout().total_blocks();
    order.idle_timeout = absl::Seconds(60);
    order.token = "t";
    ASSERT_TRUE(OpenPool(memory(), order).ok());
    memory().control().proposals.snapshot = kId;
  }
  void CutByAnotherOwner() {
    absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(memory(), kId);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool->SaveAtCut(memory(), Step(0), LossScale());
    FindSnapshot(memory().control(), kId)->cut_plus_1 = 1;
  }
  float Kept() {
    absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(memory(), kId);
    EXPECT_TRUE(pool.ok()) << pool.status();
    float value = 0;
    pool->Read(0, memory().plane(0), 0, 1, reinterpret_cast<char*>(&value));
    return value;
  }

  runtime::TestRoot root_{"/dev/shm"};
  TestHost host_{root_.path(), 0, 1};
  SnapshotKeeper keeper_{&memory(), &records()};
};

TEST_F(SnapshotKeeperTest, WhatWasProposedIsMappedBeforeItIsCut) {
  Propose();
  keeper_.Look(Ranges());
  CutByAnotherOwner();
  keeper_.Begin(Step(1), false);
  ASSERT_TRUE(keeper_.any());
  keeper_.Preserve({0, 1});
  memory().plane(0)[0] = 2;
  EXPECT_EQ(Kept(), 1);
}

// The owner was busy with a step while one was proposed and cut: it is in use before the owner looks for
// news.
TEST_F(SnapshotKeeperTest, WhatIsInUseStaysSoWhenItIsFirstSeen) {
  Propose();
  CutByAnotherOwner();
  keeper_.Begin(Step(1), false);
  keeper_.Look(Ranges());
  keeper_.Look(Ranges());
  ASSERT_TRUE(keeper_.any());
  keeper_.Preserve({0, 1});
  memory().plane(0)[0] = 2;
  EXPECT_EQ(Kept(), 1);
  ReleasePool(memory(), kId);
  keeper_.Look(Ranges());
  EXPECT_FALSE(keeper_.any());
}

}  // namespace
}  // namespace sherd::server

#include "runtime/job_memory.h"

#include <sys/stat.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

JobSpec Spec(int world = 2) {
  JobSpec spec;
  spec.job = "memory";
  spec.layout = *Layout::Create({{{"a", {1000}}}, {{"frozen", {600}, DType::kFloat32, 0, false}}});
  spec.groups = {""};
  spec.world_size = world;
  spec.stage = 1;
  return spec;
}

class JobMemoryTest : public ::testing::Test {
 protected:
  JobMemoryTest() : dir_(*JobDir::Create(root_.path(), "memory")) {}
  TestRoot root_;
  JobDir dir_;
};

TEST_F(JobMemoryTest, TrainersSeeWhatOwnersWriteAndOwnersTheirRecords) {
  auto owner = JobMemory::Create(&dir_, Spec());
  ASSERT_TRUE(owner.ok()) << owner.status();
  ASSERT_TRUE((*owner)->BeginFirstAssignment(1, HostMap::OneHost(2)).ok());
  auto trainer = JobMemory::Open(&dir_, Spec(), JobMemory::Role::kTrainer);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  (*owner)->plane(0)[999] = 7;
  EXPECT_EQ((*trainer)->plane(0)[999], 7);
  (*trainer)->rank(Rank(1)).PublishDelivered(0, Mark::Of({Step(1), 0}, 1), {});
  EXPECT_EQ((*owner)->rank(Rank(1)).Delivered(0).parts(), 1u);
  // A frozen unit has no planes but its parameters.
  EXPECT_EQ((*owner)->trainable_blocks(), 4);
  EXPECT_EQ((*owner)->plane_blocks(0), 7);
  EXPECT_EQ((*owner)->plane_segment(1).size(), 4 * kBlockElements * 4);
}

TEST_F(JobMemoryTest, StagingIsFoundByNameAndWholeSizesAreChecked) {
  auto owner = JobMemory::Create(&dir_, Spec());
  ASSERT_TRUE(owner.ok());
  auto trainer = JobMemory::Open(&dir_, Spec(), JobMemory::Role::kTrainer);
  ASSERT_TRUE(trainer.ok());
  EXPECT_TRUE(absl::IsNotFound((*owner)->Staging(Rank(0), 0).status()));
  auto chunk = (*trainer)->CreateStaging(Rank(0), 0, 4096);
  ASSERT_TRUE(chunk.ok());
  (*chunk)[5] = 'x';
  auto seen = (*owner)->Staging(Rank(0), 0);
  ASSERT_TRUE(seen.ok());
  EXPECT_EQ((*seen)[5], 'x');
  EXPECT_EQ(seen->size(), 4096u);
}

TEST_F(JobMemoryTest, AnotherModelOrWorldIsRefusedWithBothValues) {
  ASSERT_TRUE(JobMemory::Create(&dir_, Spec()).ok());
  auto world = JobMemory::Open(&dir_, Spec(3), JobMemory::Role::kTrainer);
  EXPECT_EQ(world.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(world.status().message().find("3 ranks"), absl::string_view::npos) << world.status();
}

TEST_F(JobMemoryTest, AJobThatIsNotMadeYetIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(JobMemory::Open(&dir_, Spec(), JobMemory::Role::kOwner).status()));
}

TEST_F(JobMemoryTest, CreatingAgainReplacesWhatADeadCoordinatorLeft) {
  {
    auto dead = JobMemory::Create(&dir_, Spec());
    ASSERT_TRUE(dead.ok());
    (*dead)->plane(0)[0] = 1;
    ASSERT_TRUE(Segment::Unlink(dir_, "control").ok());  // it died before this was made
  }
  auto again = JobMemory::Create(&dir_, Spec());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->plane(0)[0], 0);
}

TEST_F(JobMemoryTest, RanksThatJoinGetPagesWhichOthersMapWhenTheyTakeThemUp) {
  auto owner = JobMemory::Create(&dir_, Spec());
  ASSERT_TRUE(owner.ok());
  auto trainer = JobMemory::Open(&dir_, Spec(), JobMemory::Role::kTrainer);
  ASSERT_TRUE(trainer.ok());
  EXPECT_EQ((*trainer)->places(), 2);
  // A coordinator died after it had made the page and before it said so.
  ASSERT_TRUE(Segment::Create(dir_, "rank.2", SegmentKind::kControl, RankRecords::BytesFor(Spec())).ok());
  ASSERT_TRUE((*owner)->AddRanks(4).ok());
  EXPECT_EQ((*trainer)->places(), 4);
  ASSERT_TRUE((*trainer)->MapRanks().ok());
  (*trainer)->rank(Rank(3)).PublishDelivered(0, Mark::Of({Step(1), 0}, 1), {});
  EXPECT_EQ((*owner)->rank(Rank(3)).Delivered(0).parts(), 1u);
  auto late = JobMemory::Open(&dir_, Spec(), JobMemory::Role::kReader);
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_EQ((*late)->rank(Rank(3)).Delivered(0).parts(), 1u);
  ASSERT_TRUE((*owner)->AddRanks(3).ok());
  EXPECT_EQ((*owner)->places(), 4) << "what was a rank once keeps its page";
}

TEST_F(JobMemoryTest, DoneByAllFollowsTheAssignments) {
  auto memory = JobMemory::Create(&dir_, Spec());
  ASSERT_TRUE(memory.ok());
  JobMemory& m = **memory;
  EXPECT_FALSE(m.DoneByAll().ok());
  ASSERT_TRUE(m.BeginFirstAssignment(1, HostMap::OneHost(2)).ok());
  EXPECT_EQ(m.DoneByAll()->step, Step(0));
  (*m.owner(Slot(0)))->PublishDone({Step(3), 0}, {1, 0, 0});
  EXPECT_EQ(m.DoneByAll()->step, Step(0));
  (*m.owner(Slot(1)))->PublishDone({Step(2), 0}, {1, 0, 0});
  EXPECT_EQ(m.DoneByAll()->step, Step(2));
  // Three owners from step 4 on: entered in the table before slot 1 has done step 3.
  m.control().PutAssignment(2, *HostMap::Create({0, 1, 0}), 5);
  EXPECT_EQ(m.control().Newest()->epoch, 1u);
  m.control().Activate(2, Step(4));
  EXPECT_EQ(m.DoneByAll()->step, Step(2));
  (*m.owner(Slot(1)))->PublishDone({Step(3), 0}, {2, 0, 0});
  EXPECT_EQ(m.DoneByAll()->step, Step(3)) << "the new slot counts as standing before the assignment";
  m.control().Activate(2, Step(9));
  EXPECT_EQ(m.control().Newest()->from_step, Step(4)) << "an assignment is put in force once";
  EXPECT_EQ(m.control().AssignmentFor(Step(3))->servers, 2);
  EXPECT_EQ(m.control().AssignmentFor(Step(4))->servers, 3);
  EXPECT_EQ(m.control().AssignmentFor(Step(3))->world_size, 2);
  EXPECT_EQ(m.control().AssignmentFor(Step(4))->world_size, 5);
  EXPECT_EQ(m.control().AssignmentFor(Step(4))->hosts.ToString(), "0,1,0");
  EXPECT_EQ(m.control().Before(2)->epoch, 1u);
}

// Of the parameters: a host of several, in stage 3.
class GatheredMemoryTest : public JobMemoryTest {
 protected:
  static constexpr int64_t kElements = 1 << 20;
  static JobSpec Stage3(bool shares) {
    JobSpec spec = Spec();
    spec.layout =
        *Layout::Create({{{"w", {kElements}}}, {{"kept", {kElements}}}, {{"v", {kElements + 300}}}});
    spec.stage = 3;
    spec.reduction.groups = {1, 1};
    spec.gather.persistent = {1};
    spec.gather.initial_shares = shares;
    return spec;
  }
  int64_t Resident() const {
    struct stat st;
    EXPECT_EQ(::stat(absl::StrCat(dir_.path(), "/plane.param").c_str(), &st), 0);
    return st.st_blocks * 512;
  }
  // The header, and pages at the edges of what is not there.
  static constexpr int64_t kSlack = 8 * Segment::kPageBytes;
};

TEST_F(GatheredMemoryTest, HasItsShareAndWhatIsGathered) {
  for (const int host : {0, 1}) {
    auto made = JobMemory::Create(&dir_, Stage3(/*shares=*/true), {host, 2});
    ASSERT_TRUE(made.ok()) << made.status();
    JobMemory& memory = **made;
    EXPECT_TRUE(memory.IsGathered(0));
    EXPECT_FALSE(memory.IsGathered(1));
    EXPECT_NEAR(Resident(), 8 * kElements, kSlack);  // half of w, kept, half of v
    EXPECT_NEAR(memory.GatheredBytes(2), 2 * kElements, kSlack);
    ASSERT_TRUE(memory.ReserveGathered(0).ok());
    ASSERT_TRUE(memory.ReserveGathered(2).ok());
    EXPECT_NEAR(Resident(), 12 * kElements, kSlack);
    std::fill_n(memory.plane(0), memory.layout().total_blocks() * kBlockElements, 1.0f);
    ASSERT_TRUE(memory.FreeGathered(0).ok());
    EXPECT_NEAR(Resident(), 10 * kElements, kSlack);
    // What was freed is gone; all else stays, to the element.
    const BlockRange w = memory.layout().units()[0].blocks, other = HostShare(w, 1 - host, {2, 2});
    int64_t gone = 0;
    for (int64_t i = 0; i < memory.layout().total_blocks() * kBlockElements; ++i) {
      if (memory.plane(0)[i] == 1.0f) continue;
      ++gone;
      ASSERT_TRUE(i >= other.begin * kBlockElements && i < other.end * kBlockElements) << i;
    }
    EXPECT_EQ(gone * 4, memory.GatheredBytes(0));
  }
}

TEST_F(GatheredMemoryTest, TheFirstHostGivesInitialValuesOfOthersBack) {
  auto made = JobMemory::Create(&dir_, Stage3(/*shares=*/false), {0, 2});
  ASSERT_TRUE(made.ok()) << made.status();
  JobMemory& memory = **made;
  EXPECT_NEAR(Resident(), 12 * kElements, kSlack);
  std::fill_n(memory.plane(0), memory.layout().total_blocks() * kBlockElements, 1.0f);
  for (int twice = 0; twice < 2; ++twice) {
    ASSERT_TRUE(memory.GiveBackInitial().ok());
    EXPECT_NEAR(Resident(), 8 * kElements, kSlack);
  }
  const Layout& layout = memory.layout();
  for (const BlockRange& blocks : {HostShare(layout.units()[0].blocks, 0, {2, 2}), layout.units()[1].blocks,
                                   HostShare(layout.units()[2].blocks, 0, {2, 2})}) {
    const float* begin = memory.plane(0) + blocks.begin * kBlockElements;
    EXPECT_EQ(std::count(begin, begin + blocks.size() * kBlockElements, 1.0f),
              blocks.size() * kBlockElements);
  }
}

}  // namespace
}  // namespace sherd::runtime

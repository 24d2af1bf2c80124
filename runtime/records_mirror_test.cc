// Records copied to the page of another host.
#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/records.h"

namespace sherd::runtime {
namespace {

using ::testing::ElementsAre;

JobSpec Spec(int stage) {
  JobSpec spec;
  spec.job = "mirror";
  spec.layout = *Layout::Create({{{"a", {300}}, {"b", {7}}}, {{"c", {256, 3}}}});
  spec.groups = {"all"};
  spec.world_size = 2;
  spec.stage = stage;
  spec.max_blob_bytes = 4096;
  spec.buffers = {{"mean", {3}, "F32"}};
  return spec;
}

// A page as on two hosts.
template <typename Records>
struct Pair {
  explicit Pair(const JobSpec& spec)
      : here(Records::BytesFor(spec) / 64 + 1),
        there(here.size()),
        a(&spec, Bytes(here)),
        b(&spec, Bytes(there)) {}
  struct alignas(64) Line {
    char bytes[64] = {};
  };
  static char* Bytes(std::vector<Line>& lines) { return lines[0].bytes; }
  std::vector<Line> here, there;
  Records a, b;
};

TrainerStep StepOf(StepId id) {
  TrainerStep step;
  step.id = id;
  step.samples = 12;
  step.weight = 1.5, step.loss = 3.25;
  step.groups.resize(1);
  step.groups[0][kLr] = 0.125;
  step.parts = {2, 1};
  step.has_grad = {5};
  step.imports = {77};
  return step;
}

TEST(RecordsMirror, AStepWithBlobAndBuffers) {
  const JobSpec spec = Spec(1);
  Pair<RankRecords> rank(spec);
  EXPECT_EQ(rank.a.CopyStep(Step(3)), "") << "nothing was recorded";
  rank.a.buffers(Step(3))[5] = 'x';
  ASSERT_TRUE(rank.a.PublishStep(StepOf({Step(3), 0}), "a blob").ok());
  const std::string copy = rank.a.CopyStep(Step(3));
  ASSERT_TRUE(rank.b.PutStep(copy));
  const std::optional<TrainerStep> got = rank.b.ReadStep(Step(3));
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(got->samples, 12);
  EXPECT_EQ(got->loss, 3.25);
  EXPECT_EQ(got->groups[0][kLr], 0.125);
  EXPECT_THAT(got->parts, ElementsAre(2, 1));
  EXPECT_THAT(got->has_grad, ElementsAre(5));
  EXPECT_THAT(got->imports, ElementsAre(77));
  EXPECT_EQ(rank.b.ReadBlob(Step(3)), "a blob");
  EXPECT_EQ(rank.b.buffers(Step(3))[5], 'x');
  EXPECT_EQ(rank.b.StepMarks(), rank.a.StepMarks());
  // Said again after a newer one: nothing goes back.
  ASSERT_TRUE(rank.a.PublishStep(StepOf({Step(5), 0}), "").ok());
  ASSERT_TRUE(rank.b.PutStep(rank.a.CopyStep(Step(5))));
  EXPECT_TRUE(rank.b.PutStep(copy));
  EXPECT_FALSE(rank.b.HasStep(Step(3)).has_value());
  EXPECT_TRUE(rank.b.HasStep(Step(5)).has_value());
}

TEST(RecordsMirror, WhatIsOfAnotherJobIsRefused) {
  const JobSpec spec = Spec(1);
  Pair<RankRecords> rank(spec);
  Pair<OwnerRecords> owner(spec);
  ASSERT_TRUE(rank.a.PublishStep(StepOf({Step(1), 0}), "blob").ok());
  std::string copy = rank.a.CopyStep(Step(1));
  EXPECT_FALSE(rank.b.PutStep(copy + "x"));
  EXPECT_FALSE(rank.b.PutStep(copy.substr(0, copy.size() - 1)));
  EXPECT_FALSE(rank.b.PutStep(""));
  EXPECT_FALSE(rank.b.HasStep(Step(1)).has_value());
  copy = owner.a.Copy();
  EXPECT_FALSE(owner.b.Put(copy + "x"));
  EXPECT_FALSE(owner.b.Put(copy.substr(0, 100)));
}

TEST(RecordsMirror, WhatAnOwnerPublishes) {
  const JobSpec spec = Spec(2);
  Pair<OwnerRecords> owner(spec);
  const StepId id{Step(7), 1};
  auto changed = [&, last = owner.a.ReadMarks()]() mutable {
    const auto now = owner.a.ReadMarks();
    return std::exchange(last, now) != now;
  };
  OwnerPrepared prepared;
  prepared.id = id;
  prepared.ranges_epoch = 4;
  prepared.sum_squares.Add(2.5);
  prepared.proposals.snapshot = 9;
  owner.a.PublishPrepared(prepared);
  EXPECT_TRUE(changed());
  owner.a.PublishPhased(id);
  EXPECT_TRUE(changed());
  Verdict verdict;
  verdict.id = id;
  verdict.loss = 0.5;
  verdict.reason = "because";
  verdict.groups.resize(1);
  verdict.has_grad = {3};
  verdict.imports = {11, 12};
  owner.a.WriteVerdict(verdict);
  EXPECT_TRUE(changed());
  owner.a.PublishBoundary({{Step(8), 0}, 2, 4, {4, 0, 1}});
  EXPECT_TRUE(changed());
  owner.a.PublishBoundaryDone({{Step(8), 0}, 1, 4, {4, 0, 1}});
  EXPECT_TRUE(changed());
  owner.a.PublishRejected({Step(7), 0});
  EXPECT_TRUE(changed());
  owner.a.PublishDone(id, {4, 9, 0});
  EXPECT_TRUE(changed());
  owner.a.Consumed(1).store(Mark::Of(id, 3).word());
  EXPECT_FALSE(changed());
  ASSERT_TRUE(owner.b.Put(owner.a.Copy()));
  EXPECT_EQ(owner.b.ReadMarks(), owner.a.ReadMarks());
  EXPECT_EQ(owner.b.ConsumedBytes(), owner.a.ConsumedBytes());
  ASSERT_TRUE(owner.b.ReadPrepared(id).has_value());
  EXPECT_EQ(owner.b.ReadPrepared(id)->sum_squares.Value(), 2.5);
  EXPECT_EQ(owner.b.ReadPrepared(id)->ranges_epoch, 4);
  ASSERT_TRUE(owner.b.ReadVerdict(id).has_value());
  EXPECT_EQ(owner.b.ReadVerdict(id)->reason, "because");
  EXPECT_THAT(owner.b.ReadVerdict(id)->imports, ElementsAre(11, 12));
  EXPECT_EQ(owner.b.Done(), id);
  EXPECT_EQ(owner.b.Decided().import, 1) << "of the boundary after DONE";
  EXPECT_EQ(owner.b.Rejected(), (StepId{Step(7), 0}));
  const OwnerPage page = owner.b.ReadPage(id);
  EXPECT_EQ(page.boundary.n, 2);
  EXPECT_EQ(page.boundary_done.n, 1);
  EXPECT_EQ(page.phased, id);
}

// Whoever begins the next attempt takes the loss scale from the verdict of the last one, which must not be
// absent then, not for a moment.
TEST(RecordsMirror, AnAttemptThatABoundaryEndedHasItsVerdict) {
  const JobSpec spec = Spec(1);
  Pair<OwnerRecords> owner(spec);
  constexpr uint64_t kRounds = 4000;
  std::atomic<uint64_t> seen{0};
  std::atomic<bool> absent{false};
  std::thread trainer([&] {
    for (uint64_t step = 1; step <= kRounds; ++step) {
      while (owner.b.Rejected().step < Step(step)) continue;
      if (!owner.b.LastVerdict().has_value()) absent = true;
      seen = step;
    }
  });
  for (uint64_t step = 1; step <= kRounds; ++step) {
    Verdict verdict;
    verdict.id = {Step(step), 0};
    verdict.kind = VerdictKind::kReject;
    verdict.groups.resize(1);
    verdict.has_grad = {5};
    owner.a.WriteVerdict(verdict);
    owner.a.PublishBoundaryDone({{Step(step), 1}, 1, 1, {}});
    EXPECT_TRUE(owner.b.Put(owner.a.Copy()));
    while (seen < step) continue;
  }
  trainer.join();
  EXPECT_FALSE(absent);
}

}  // namespace
}  // namespace sherd::runtime

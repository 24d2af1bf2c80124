#include "runtime/records.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

JobSpec Spec() {
  JobSpec spec;
  spec.job = "records";
  spec.layout = *Layout::Create({{{"a", {300}}, {"b", {7}}}, {{"c", {5}}}});
  spec.groups = {"x", "y"};
  spec.max_blob_bytes = 100;
  spec.buffers = {{"mean", {3}, "F32"}, {"count", {}, "I64"}};
  return spec;
}

// Zeroed memory, aligned as a segment's payload is.
class Page {
 public:
  explicit Page(int64_t bytes) : memory_(bytes + 64, 0) {}
  char* data() {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

 private:
  std::vector<char> memory_;
};

TrainerStep Record(uint64_t step, uint8_t attempt) {
  TrainerStep s;
  s.id = {Step(step), attempt};
  s.samples = 12, s.weight = 1.5, s.loss = 2.5, s.loss_scale = {4, 2, 9, 1, 3, 0}, s.max_grad_norm = 0.5;
  s.groups.resize(2);
  s.groups[1][kLr] = 0.125;
  s.parts = {3, 0};
  s.has_grad = {5};
  s.imports = {77, 78};
  return s;
}

TEST(RankRecordsTest, KeepsTheLastTwoSteps) {
  const JobSpec spec = Spec();
  Page page(RankRecords::BytesFor(spec));
  RankRecords rank(&spec, page.data());
  EXPECT_FALSE(rank.HasStep(Step(1)).has_value());
  EXPECT_EQ(rank.ReadBlob(Step(1)), "");
  ASSERT_TRUE(rank.PublishStep(Record(1, 0), "one").ok());
  ASSERT_TRUE(rank.PublishStep(Record(2, 3), "two").ok());
  EXPECT_EQ(rank.ReadBlob(Step(1)), "one");
  ASSERT_TRUE(rank.HasStep(Step(2)).has_value());
  EXPECT_EQ(rank.HasStep(Step(2))->attempt, 3);
  const std::optional<TrainerStep> s = rank.ReadStep(Step(2));
  ASSERT_TRUE(s.has_value());
  EXPECT_EQ(s->samples, 12u);
  EXPECT_EQ(s->weight, 1.5);
  EXPECT_EQ(s->loss_scale, Record(2, 3).loss_scale);
  EXPECT_EQ(s->groups[1][kLr], 0.125);
  EXPECT_EQ(s->parts, (std::vector<uint16_t>{3, 0}));
  EXPECT_EQ(s->has_grad, std::vector<uint64_t>{5});
  EXPECT_EQ(s->imports, (std::vector<uint64_t>{77, 78}));
  ASSERT_TRUE(rank.PublishStep(Record(3, 0), "").ok());
  EXPECT_FALSE(rank.ReadStep(Step(1)).has_value());
  EXPECT_EQ(rank.ReadBlob(Step(2)), "two");
}

TEST(RankRecordsTest, RefusesWhatDoesNotFit) {
  const JobSpec spec = Spec();
  Page page(RankRecords::BytesFor(spec));
  RankRecords rank(&spec, page.data());
  const absl::Status blob = rank.PublishStep(Record(1, 0), std::string(101, 'x'));
  EXPECT_EQ(blob.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(blob.message().find("101"), absl::string_view::npos) << blob;
  TrainerStep groups = Record(1, 0);
  groups.groups.resize(3);
  EXPECT_FALSE(rank.PublishStep(groups, "").ok());
  TrainerStep imports = Record(1, 0);
  imports.imports.assign(kMaxStepImports + 1, 1);
  EXPECT_FALSE(rank.PublishStep(imports, "").ok());
  EXPECT_FALSE(rank.HasStep(Step(1)).has_value());
}

TEST(RankRecordsTest, DeliveriesAndBuffersLieApart) {
  const JobSpec spec = Spec();
  Page page(RankRecords::BytesFor(spec));
  RankRecords rank(&spec, page.data());
  rank.PublishDelivered(0, Mark::Of({Step(4), 0}, 1), {2, 128, 0.5f});
  rank.PublishDelivered(1, Mark::Of({Step(4), 0}, 2), {Delivery::kEmpty, 0, 1});
  ASSERT_EQ(rank.buffers(Step(4)).size(), 24u);
  std::memset(rank.buffers(Step(4)).data(), 0xff, 24);
  std::memset(rank.buffers(Step(5)).data(), 0xff, 24);
  EXPECT_EQ(rank.Delivered(0).PartsOf({Step(4), 0}), 1u);
  EXPECT_EQ(rank.ReadDelivery(0).offset, 128u);
  EXPECT_EQ(rank.ReadDelivery(0).scale, 0.5f);
  EXPECT_EQ(rank.ReadDelivery(1).chunk, Delivery::kEmpty);
  EXPECT_EQ(BufferOffset(spec, 1), 16);
}

TEST(RankRecordsTest, DamagedCountsStayWithinThePage) {
  const JobSpec spec = Spec();
  Page page(RankRecords::BytesFor(spec));
  RankRecords rank(&spec, page.data());
  ASSERT_TRUE(rank.PublishStep(Record(1, 0), "blob").ok());
  // Everything but the marks becomes 0xff, as a wild store of a trainer could make it.
  std::vector<char> marks(page.data(), page.data() + 8);
  const int64_t bytes = RankRecords::BytesFor(spec);
  for (int64_t at = 0; at < bytes; at += 8) {
    uint64_t word;
    std::memcpy(&word, page.data() + at, 8);
    if (word == Mark::Of({Step(1), 0}, 1).word()) continue;
    std::memset(page.data() + at, 0xff, 8);
  }
  const std::optional<TrainerStep> s = rank.ReadStep(Step(1));
  ASSERT_TRUE(s.has_value());
  EXPECT_LE(s->groups.size(), 2u);
  EXPECT_LE(s->imports.size(), static_cast<size_t>(kMaxStepImports));
  EXPECT_LE(rank.ReadBlob(Step(1)).size(), 100u);
}

Verdict MakeVerdict(uint64_t step) {
  Verdict v;
  v.id = {Step(step), 0};
  v.grad_norm = 3, v.grad_scale = 0.25, v.clip = 0.5, v.loss = 7, v.samples = 9;
  v.groups.resize(2);
  v.has_grad = {3};
  v.imports = {1, 2, 3};
  v.proposals = {4, 5, 6};
  v.reason = "why";
  return v;
}

TEST(OwnerRecordsTest, RecordsReadBackAndOthersAreAbsent) {
  const JobSpec spec = Spec();
  Page page(OwnerRecords::BytesFor(spec));
  OwnerRecords owner(&spec, page.data());
  EXPECT_EQ(owner.Done(), StepId());
  EXPECT_FALSE(owner.LastVerdict().has_value());
  owner.WriteVerdict(MakeVerdict(8));
  const std::optional<Verdict> v = owner.ReadVerdict({Step(8), 0});
  ASSERT_TRUE(v.has_value());
  EXPECT_EQ(v->grad_scale, 0.25);
  EXPECT_EQ(v->imports.size(), 3u);
  EXPECT_EQ(v->proposals, (Proposals{4, 5, 6}));
  EXPECT_EQ(v->reason, "why");
  EXPECT_FALSE(owner.ReadVerdict({Step(7), 0}).has_value());
  OwnerPrepared p;
  p.id = {Step(9), 0};
  p.ranges_epoch = 3;
  p.sum_squares.Add(2.0);
  owner.PublishPrepared(p);
  EXPECT_FALSE(owner.ReadPrepared({Step(9), 1}).has_value());
  ASSERT_TRUE(owner.ReadPrepared({Step(9), 0}).has_value());
  EXPECT_EQ(owner.ReadPrepared({Step(9), 0})->sum_squares.Value(), 2.0);
}

TEST(OwnerRecordsTest, WhatWasDecidedIsDonesAndTheBoundariesAfterIt) {
  const JobSpec spec = Spec();
  Page page(OwnerRecords::BytesFor(spec));
  OwnerRecords owner(&spec, page.data());
  owner.PublishDone({Step(4), 0}, {1, 2, 3});
  EXPECT_EQ(owner.Decided(), (Proposals{1, 2, 3}));
  owner.PublishBoundaryDone({{Step(5), 0}, 1, 1, {1, 9, 3}});
  EXPECT_EQ(owner.Decided(), (Proposals{1, 9, 3}));
  owner.PublishBoundaryDone({{Step(5), 0}, 2, 1, {1, 9, 8}});
  EXPECT_EQ(owner.Decided(), (Proposals{1, 9, 8}));
  EXPECT_EQ(owner.ReadPage({Step(5), 0}).boundary_done.n, 2u);
  // With the next step the boundary is history: the verdict's record says it all.
  owner.PublishDone({Step(5), 0}, {1, 9, 8});
  owner.PublishDone({Step(6), 0}, {2, 9, 8});
  EXPECT_EQ(owner.Decided(), (Proposals{2, 9, 8}));
}

TEST(OwnerRecordsTest, ANewSlotEntersWhereAnotherStands) {
  const JobSpec spec = Spec();
  Page first_page(OwnerRecords::BytesFor(spec)), second_page(OwnerRecords::BytesFor(spec));
  OwnerRecords first(&spec, first_page.data()), second(&spec, second_page.data());
  first.PublishDone({Step(4), 1}, {1, 2, 3});
  first.PublishRejected({Step(5), 2});
  first.PublishBoundaryDone({{Step(5), 3}, 1, 1, {4, 2, 3}});
  second.EnterFrom(first, 4);
  EXPECT_EQ(second.Done(), first.Done());
  EXPECT_EQ(second.Rejected(), first.Rejected());
  EXPECT_EQ(second.Decided(), first.Decided());
  EXPECT_EQ(second.Entered(), 4u);
}

TEST(OwnerRecordsTest, ABoundaryBeforeAnAttemptRejectsTheOneBeforeIt) {
  const JobSpec spec = Spec();
  Page page(OwnerRecords::BytesFor(spec));
  OwnerRecords owner(&spec, page.data());
  owner.PublishBoundaryDone({{Step(5), 0}, 1, 1, {1, 0, 0}});
  EXPECT_EQ(owner.Rejected(), (StepId{Step(0), 0}));
  owner.PublishBoundaryDone({{Step(5), 1}, 2, 1, {2, 0, 0}});  // gives 5 up
  EXPECT_EQ(owner.Rejected(), (StepId{Step(5), 0}));
  owner.PublishRejected({Step(5), 1});
  EXPECT_EQ(owner.Rejected(), (StepId{Step(5), 1}));
}

TEST(OwnerRecordsTest, WorkersUndoAreasAreApart) {
  const JobSpec spec = Spec();
  Page page(OwnerRecords::BytesFor(spec));
  OwnerRecords owner(&spec, page.data());
  const int64_t planes = static_cast<int64_t>(spec.PlaneNames().size());
  for (int w = 0; w < kMaxWorkers; ++w) {
    const WorkerUndo u = owner.undo(w);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(u.apply_planes) % 64, 0u);
    std::fill_n(u.apply_planes, planes * kBlockElements, static_cast<float>(w));
    std::fill_n(u.reduce_block, kBlockElements, static_cast<float>(w));
    *u.reduce_sumsq = w;
    u.apply->mark.store(w), u.reduce->mark.store(w);
  }
  for (int w = 0; w < kMaxWorkers; ++w) {
    const WorkerUndo u = owner.undo(w);
    EXPECT_EQ(u.apply_planes[planes * kBlockElements - 1], w);
    EXPECT_EQ(u.reduce_block[0], w);
    EXPECT_EQ(*u.reduce_sumsq, w);
    EXPECT_EQ(u.apply->mark.load(), static_cast<uint64_t>(w));
  }
  EXPECT_EQ(owner.Done(), StepId());
}

}  // namespace
}  // namespace sherd::runtime

#include "core/slice_pipeline.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr StepId kStep1{Step(1), 0};

std::string Text(const std::vector<SliceOrder>& slices) {
  return absl::StrJoin(slices, " ", [](std::string* out, const SliceOrder& s) {
    absl::StrAppend(out, s.unit, ".", s.part, "@", s.id.ToString());
  });
}

// Host of ranks 1 and 2; slots 3 and 4 of other hosts own unit 0, slot 4 unit 1; unit 2 has nothing to slice.
class Under {
 public:
  std::string Delivered(int rank, int unit, int parts, StepId id = kStep1) {
    return After([&](auto* out) { p.OnDelivered(Rank(rank), unit, Mark::Of(id, parts), out); });
  }
  std::string Step(int rank, std::vector<uint16_t> parts, StepId id = kStep1) {
    TrainerStep s;
    s.id = id;
    s.parts = std::move(parts);
    return After([&](auto* out) { p.OnTrainerStep(Rank(rank), s, out); });
  }
  std::string Consumed(int slot, int unit, int parts, StepId id = kStep1) {
    return After([&](auto* out) { p.OnConsumed(Slot(slot), unit, Mark::Of(id, parts), out); });
  }
  std::string Sliced(int unit) {
    return After([&](auto* out) { p.OnSliced(unit, out); });
  }
  SlicePipeline p{{1, 3, {true, true, false}, {{3, 4}, {4}, {3}}}, kStep1};

 private:
  template <typename Do>
  std::string After(Do act) {
    std::vector<SliceOrder> out;
    act(&out);
    return Text(out);
  }
};

TEST(SlicePipeline, SlicesWhatEveryRankOfTheHostDelivered) {
  Under u;
  EXPECT_EQ(u.Delivered(1, 0, 1), "");
  EXPECT_EQ(u.Delivered(0, 0, 1), "") << "a rank of another host";
  EXPECT_EQ(u.Delivered(2, 0, 1), "0.0@1");
  EXPECT_EQ(u.Delivered(2, 0, 1), "") << "in hand";
  EXPECT_EQ(u.Delivered(1, 2, 1), "");
  EXPECT_EQ(u.Delivered(2, 2, 1), "") << "nothing to slice";
}

TEST(SlicePipeline, TheNextPartWaitsUntilTheOutboxIsFree) {
  Under u;
  u.Delivered(1, 0, 1);
  EXPECT_EQ(u.Delivered(2, 0, 1), "0.0@1");
  u.Delivered(1, 0, 2);
  EXPECT_EQ(u.Delivered(2, 0, 2), "");
  EXPECT_EQ(u.Sliced(0), "") << "nobody has consumed it";
  EXPECT_EQ(u.p.WaitsFor(), "slot 3 (reduction of unit 0, step 1)");
  EXPECT_EQ(u.Consumed(3, 0, 1), "");
  EXPECT_EQ(u.Consumed(4, 1, 1), "") << "another unit";
  EXPECT_EQ(u.p.WaitsFor(), "slot 4 (reduction of unit 0, step 1)");
  EXPECT_EQ(u.Consumed(4, 0, 1, {Step(1), 1}), "") << "another attempt";
  EXPECT_EQ(u.Consumed(4, 0, 1), "0.1@1");
  EXPECT_EQ(u.p.WaitsFor(), "");
}

TEST(SlicePipeline, ARecordSaysWhoNeverWillDeliver) {
  Under u;
  EXPECT_EQ(u.Delivered(1, 0, 1), "");
  EXPECT_EQ(u.Step(2, {0, 1, 0}), "0.0@1") << "rank 2 has nothing for unit 0; of unit 1 rank 1 may deliver";
  EXPECT_EQ(u.Step(1, {1, 0, 0}), "1.0@1") << "what a record says was delivered, was";
  Under none;
  EXPECT_EQ(none.Step(1, {0, 0, 0}), "");
  EXPECT_EQ(none.Step(2, {0, 0, 0}), "") << "nobody has anything";
}

TEST(SlicePipeline, ASuccessorGoesOn) {
  Under u;
  u.p.OnOwn(0, Mark::Of(kStep1, 1));
  u.p.OnOwn(1, Mark::Of({Step(7), 0}, 1));  // of another step
  EXPECT_EQ(u.Step(1, {2, 1, 0}), "");
  EXPECT_EQ(u.Step(2, {2, 1, 0}), "1.0@1") << "unit 0's first part was sliced and is not consumed";
  u.Consumed(3, 0, 1);
  EXPECT_EQ(u.Consumed(4, 0, 1), "0.1@1");
}

TEST(SlicePipeline, AnotherStepOrAttemptBeginsAnew) {
  Under u;
  u.Delivered(1, 0, 1);
  u.Delivered(2, 0, 1);
  u.Sliced(0);
  const StepId again = kStep1.NextAttempt();
  u.p.Begin(kStep1);
  EXPECT_EQ(u.Delivered(2, 0, 1), "") << "the same step: nothing is forgotten";
  u.p.Begin(again);
  EXPECT_EQ(u.Delivered(1, 0, 1), "") << "of the attempt before";
  EXPECT_EQ(u.Delivered(1, 0, 1, again), "");
  EXPECT_EQ(u.Delivered(2, 0, 1, again), "0.0@1#1");
  EXPECT_EQ(u.Sliced(1), "") << "not asked for";
}

}  // namespace
}  // namespace sherd

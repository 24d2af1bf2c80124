// StepPipeline where some ranks are on other hosts: of those, partial sums come.
#include "absl/strings/str_cat.h"
#include "core/step_pipeline.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr StepId kStep1{Step(1), 0};

// Slot 0 on host 0 of two, with ranks 0 and 1; ranks 2 and 3 are on host 1; two units.
class Under {
 public:
  Under() {
    OwnerPage page;
    Take([&](auto* out) { p.OnOwner(Slot(0), page, out); });
  }
  std::string Delivered(int rank, int unit, int parts) {
    return Take([&](auto* out) { p.OnDelivered(Rank(rank), unit, Mark::Of(kStep1, parts), out); });
  }
  std::string Received(int unit, int parts, StepId id = kStep1, int host = 1) {
    return Take([&](auto* out) { p.OnReceived(host, unit, Mark::Of(id, parts), out); });
  }
  std::string Stepped(int rank, std::vector<uint16_t> parts) {
    TrainerStep s;
    s.id = kStep1;
    s.samples = s.weight = 1;
    s.groups.resize(1);
    s.groups[0][kEps] = 1e-8;
    s.parts = std::move(parts);
    return Take([&](auto* out) { p.OnTrainerStep(Rank(rank), s, out); });
  }
  std::string Reduced(int unit) {
    return Take([&](auto* out) { p.OnReduced(unit, out); });
  }
  StepPipeline p{Config(), StepId(), Proposals()};

 private:
  static StepPipeline::Config Config() {
    StepPipeline::Config config{4, 2, Slot(0), 1, {true, true}};
    config.host_ranks = {2, 2};
    return config;
  }
  template <typename Do>
  std::string Take(Do act) {
    std::vector<Effect> out;
    act(&out);
    std::string text;
    for (const Effect& e : out) {
      absl::StrAppend(&text, text.empty() ? "" : " ",
                      e.kind == Effect::kReduce ? absl::StrCat(e.unit, ".", e.part) : "prepare");
    }
    return text;
  }
};

TEST(StepPipelineHostsTest, APartNeedsOwnRanksAndTheOtherHostsSum) {
  Under p;
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Delivered(1, 0, 1), "");
  EXPECT_EQ(p.Delivered(2, 0, 1), "");
  EXPECT_EQ(p.Delivered(3, 0, 1), "") << "marks of other hosts' ranks are not their gradients";
  EXPECT_EQ(p.p.WaitsFor(), "host 1 (sum of unit 0, step 1)");
  EXPECT_EQ(p.Received(0, 1, {Step(1), 1}), "") << "of another attempt";
  EXPECT_EQ(p.Received(0, 1), "0.0");
  EXPECT_EQ(p.Received(0, 1), "");
  EXPECT_EQ(p.Received(1, 1), "");
  EXPECT_EQ(p.Delivered(0, 1, 1), "");
  EXPECT_EQ(p.Delivered(1, 1, 1), "1.0") << "the other's sum first is as well";
}

TEST(StepPipelineHostsTest, RecordsSayWhatNeverComes) {
  Under p;
  EXPECT_EQ(p.Stepped(2, {0, 1}), "");
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Delivered(1, 0, 1), "") << "rank 3 may deliver";
  EXPECT_EQ(p.Stepped(3, {0, 0}), "0.0") << "nobody of host 1 has anything for unit 0";
  EXPECT_EQ(p.Reduced(0), "");
  EXPECT_EQ(p.Stepped(0, {1, 0}), "");
  EXPECT_EQ(p.Stepped(1, {1, 0}), "") << "unit 1 is rank 2's alone, and on its way";
  EXPECT_EQ(p.p.WaitsFor(), "host 1 (sum of unit 1, step 1)");
  EXPECT_EQ(p.Received(1, 1), "1.0");
  EXPECT_EQ(p.Reduced(1), "prepare");
}

TEST(StepPipelineHostsTest, AStepThatAHostIsLostInIsGivenUpByAll) {
  Under p;
  for (int rank = 0; rank < 2; ++rank) p.Delivered(rank, 0, 1);
  EXPECT_EQ(p.Received(0, 1), "0.0");
  OwnerPage lost;
  lost.prepared.emplace();
  lost.prepared->id = kStep1;
  lost.prepared->ranges_epoch = 1;
  lost.prepared->given_up = true;
  std::vector<Effect> out;
  p.p.OnOwner(Slot(1), lost, &out);
  EXPECT_TRUE(out.empty()) << "what is being summed is finished first";
  EXPECT_TRUE(p.p.given_up());
  EXPECT_EQ(p.Reduced(0), "prepare") << "without a STEP record of anybody";
  OwnerPage own = lost;
  p.p.OnOwner(Slot(0), own, &out);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].kind, Effect::kStoreVerdict);
  EXPECT_EQ(p.p.verdict().kind, VerdictKind::kGivenUp);
  EXPECT_EQ(p.p.verdict().id, kStep1);
  EXPECT_EQ(out[1].kind, Effect::kPublishDone);
  EXPECT_EQ(p.p.current(), kStep1.NextAttempt());
  EXPECT_FALSE(p.p.given_up());
  EXPECT_EQ(p.Received(1, 1), "") << "of the attempt before";
}

TEST(StepPipelineHostsTest, WhoLacksWhatALostHostHadGivesTheStepUp) {
  Under p;
  std::vector<Effect> out;
  for (int rank = 0; rank < 4; ++rank) p.Stepped(rank, {1, 1});
  EXPECT_EQ(p.Received(0, 1), "0.0");
  p.p.OnCut(1, {Step(1), 1}, &out);
  EXPECT_FALSE(p.p.given_up()) << "of another attempt";
  p.p.OnCut(1, kStep1, &out);
  EXPECT_TRUE(p.p.given_up()) << "the sum of unit 1 never comes";
  EXPECT_TRUE(out.empty());
  EXPECT_EQ(p.Reduced(0), "prepare");
  Under whole;
  for (int rank = 0; rank < 4; ++rank) whole.Stepped(rank, {1, 1});
  for (int unit = 0; unit < 2; ++unit) whole.Received(unit, 1);
  whole.p.OnCut(1, kStep1, &out);
  EXPECT_FALSE(whole.p.given_up()) << "all is here";
  EXPECT_EQ(whole.Reduced(0), "");
  EXPECT_EQ(whole.Reduced(1), "prepare");
}

TEST(StepPipelineHostsTest, WhoHasPreparedFollows) {
  Under p;
  for (int unit = 0; unit < 2; ++unit) p.Received(unit, 1);
  for (int rank = 0; rank < 4; ++rank) p.Stepped(rank, {1, 1});
  EXPECT_EQ(p.Reduced(0), "");
  EXPECT_EQ(p.Reduced(1), "prepare");
  OwnerPage page;
  page.prepared.emplace();
  page.prepared->id = kStep1;
  page.prepared->ranges_epoch = 1;
  std::vector<Effect> out;
  p.p.OnOwner(Slot(0), page, &out);
  EXPECT_TRUE(out.empty());
  page.prepared->given_up = true;
  p.p.OnOwner(Slot(1), page, &out);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(p.p.verdict().kind, VerdictKind::kGivenUp);
}

TEST(StepPipelineHostsTest, PartsComeInOrder) {
  Under p;
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(p.Delivered(rank, 0, 1), "");
  EXPECT_EQ(p.Received(0, 1), "0.0");
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(p.Delivered(rank, 0, 2), "");
  EXPECT_EQ(p.Reduced(0), "") << "the second part of the other host is not here";
  EXPECT_EQ(p.Received(0, 2), "0.1");
}

}  // namespace
}  // namespace sherd

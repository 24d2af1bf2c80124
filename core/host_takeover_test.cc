#include "core/host_takeover.h"

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr StepId kStep4{Step(4), 0}, kStep5{Step(5), 0}, kAgain{Step(5), 1};

TEST(HostTakeoverTest, WhatAnOwnerHasInHand) {
  EXPECT_EQ((OwnerProgress{kStep4, {}, {}}.InHand()), kStep5);
  EXPECT_EQ((OwnerProgress{kStep4, kStep5, {}}.InHand()), kAgain);
  EXPECT_EQ((OwnerProgress{kStep5, kAgain, {}}.InHand()), (StepId{Step(6), 0}))
      << "of a step that is done since";
  EXPECT_EQ(OwnerProgress().InHand(), (StepId{Step(1), 0}));
}

TEST(HostTakeoverTest, AStepThatSomebodyMayHaveDecidedIsFinished) {
  // One survivor has PREPARED of the first owner, another of the second; a third has even applied the step.
  const Survivor a{{{kStep4, {}, kStep5}}, {{kStep4, {}, kStep5}, {kStep4, {}, kStep4}}};
  const Survivor b{{{kStep4, {}, kStep5}}, {{kStep4, {}, kStep4}, {kStep4, {}, kStep5}}};
  const Survivor c{{{kStep5, {}, kStep5}}, {{kStep4, {}, kStep5}, {kStep5, {}, kStep5}}};
  for (const std::vector<Survivor>& all : {std::vector<Survivor>{a, b}, {a, c}, {c, a, b}}) {
    const Takeover plan = PlanTakeover(all);
    EXPECT_EQ(plan.kind, Takeover::kTell);
    EXPECT_EQ(plan.in_hand, kStep5);
  }
  EXPECT_EQ(PlanTakeover({c}).kind, Takeover::kGiveUp) << "alone it has the next step in hand";
}

TEST(HostTakeoverTest, AStepThatNobodyCanDecideIsGivenUp) {
  const Survivor a{{{kStep4, {}, kStep5}, {kStep4, {}, {}}}, {{kStep4, {}, kStep5}, {kStep4, {}, kStep4}}};
  const Survivor b{{{kStep4, {}, {}}}, {{kStep4, {}, kStep4}, {kStep4, {}, kStep4}}};
  const Takeover plan = PlanTakeover({a, b});
  EXPECT_EQ(plan.kind, Takeover::kGiveUp);
  EXPECT_EQ(plan.in_hand, kStep5);
  EXPECT_EQ(plan.has_prepared, (std::vector<bool>{true, false}));
}

TEST(HostTakeoverTest, ABoundaryThatSomebodyHasCarriedOutIsCarriedOutByAll) {
  const Mark first = Mark::Of(kStep5, 1), second = Mark::Of(kStep5, 2);
  const Survivor a{{{kStep4, {}, {}, first, first}}, {{kStep4, {}, {}, first, first}}};
  const Survivor b{{{kStep4, {}, {}, first, {}}}, {{kStep4, {}, {}, {}, {}}}};
  EXPECT_EQ(PlanTakeover({a, b}).kind, Takeover::kTell) << "one has carried it out";
  EXPECT_EQ(PlanTakeover({b, b}).kind, Takeover::kGiveUp) << "the lost one has not offered it";
  EXPECT_EQ(PlanTakeover({a, a}).kind, Takeover::kGiveUp) << "it is done";
  Survivor c = a, d = a;
  c.lost[0].offered = second;
  EXPECT_EQ(PlanTakeover({c, a}).kind, Takeover::kTell) << "the next one may be decided";
  d.own[0].prepared = kStep5;
  EXPECT_EQ(PlanTakeover({c, d}).kind, Takeover::kGiveUp) << "it never will be";
}

TEST(HostTakeoverTest, PreparedOfAnotherAttemptCountsForNothing) {
  const Survivor a{{{kStep4, kStep5, kStep5}}, {{kStep4, kStep5, kStep5}}};
  const Takeover plan = PlanTakeover({a});
  EXPECT_EQ(plan.kind, Takeover::kGiveUp);
  EXPECT_EQ(plan.in_hand, kAgain);
}

}  // namespace
}  // namespace sherd

#include "core/step_pipeline.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

using Effects = std::vector<Effect>;
constexpr StepId kStep1{Step(1), 0};

// "reduce 0.1; prepare; verdict; apply; done; boundary 1; decide 1; change 1".
std::string Text(const Effects& effects) {
  std::vector<std::string> words;
  for (const Effect& e : effects) {
    switch (e.kind) {
      case Effect::kReduce:
        words.push_back(absl::StrCat("reduce ", e.unit, ".", e.part));
        break;
      case Effect::kPrepare:
        words.push_back("prepare");
        break;
      case Effect::kPreUpdate:
        words.push_back("norms");
        break;
      case Effect::kStoreVerdict:
        words.push_back("verdict");
        break;
      case Effect::kApply:
        words.push_back("apply");
        break;
      case Effect::kPublishDone:
        words.push_back("done");
        break;
      case Effect::kPublishBoundary:
        words.push_back(absl::StrCat("boundary ", e.n));
        break;
      case Effect::kDecideBoundary:
        words.push_back(absl::StrCat("decide ", e.n));
        break;
      case Effect::kChangeRanges:
        words.push_back(absl::StrCat("change ", e.n));
        break;
    }
  }
  return absl::StrJoin(words, "; ");
}

TrainerStep StepOf(StepId id, std::vector<uint16_t> parts) {
  TrainerStep s;
  s.id = id;
  s.samples = s.weight = 1;
  s.groups.resize(1);
  s.groups[0][kEps] = 1e-8;
  s.parts = std::move(parts);
  return s;
}

OwnerPrepared PreparedOf(StepId id, uint64_t epoch = 1, Proposals proposals = {}) {
  OwnerPrepared p;
  p.id = id;
  p.ranges_epoch = epoch;
  p.proposals = proposals;
  return p;
}

// A pipeline whose calls return their effects as text, and the pages of all owners as they stand.
class Under {
 public:
  Under(int world, int servers, std::vector<bool> owns, bool show_own_page = true)
      : Under(StepPipeline({world, servers, Slot(0), 1, std::move(owns)}, StepId(), Proposals()), servers,
              show_own_page) {}
  Under(StepPipeline p, int servers, bool show_own_page = true) : p_(std::move(p)), pages(servers) {
    if (!show_own_page) return;
    EXPECT_EQ(Page(0), "");
  }
  std::string Delivered(int rank, int unit, int parts, StepId id = kStep1) {
    return Take([&](Effects* out) { p_.OnDelivered(Rank(rank), unit, Mark::Of(id, parts), out); });
  }
  std::string Stepped(int rank, TrainerStep s) {
    return Take([&](Effects* out) { p_.OnTrainerStep(Rank(rank), s, out); });
  }
  std::string Reduced(int unit) {
    return Take([&](Effects* out) { p_.OnReduced(unit, out); });
  }
  std::string Page(int slot) {
    return Take([&](Effects* out) { p_.OnOwner(Slot(slot), pages[slot], out); });
  }
  std::string Prepared(int slot, StepId id = kStep1, Proposals proposals = {}) {
    pages[slot].prepared = PreparedOf(id, p_.ranges_epoch(), proposals);
    return Page(slot);
  }
  std::string Offered(int slot, uint32_t n, Proposals proposals = {}, StepId before = kStep1) {
    pages[slot].boundary = {before, n, p_.ranges_epoch(), proposals};
    return Page(slot);
  }
  std::string BoundaryDone(int slot, uint32_t n, StepId before = kStep1) {
    pages[slot].boundary_done = {before, n, p_.ranges_epoch(), {}};
    return Page(slot);
  }
  std::string Phased(int slot, StepId id = kStep1) {
    pages[slot].phased = id;
    return Page(slot);
  }
  std::string Done(int slot, StepId id) {
    pages[slot].done = id;
    return Page(slot);
  }
  std::string Propose(Proposals proposals) {
    return Take([&](Effects* out) { p_.OnProposals(proposals, out); });
  }
  std::string Applied() {
    return Take([&](Effects* out) { p_.OnApplied(out); });
  }
  StepPipeline* operator->() { return &p_; }

 private:
  template <typename F>
  std::string Take(F call) {
    Effects out;
    call(&out);
    return Text(out);
  }
  StepPipeline p_;

 public:
  std::vector<OwnerPage> pages;
};

StepPipeline WithNorms(int servers, StepId done = {}) {
  StepPipeline::Config config{1, servers, Slot(0), 1, {true}};
  config.pre_update = true;
  return StepPipeline(config, done, Proposals());
}

TEST(StepPipelineTest, NormsOfAllStandBeforeTheVerdict) {
  Under p(WithNorms(2), 2);
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1})), "reduce 0.0");
  EXPECT_EQ(p.Reduced(0), "prepare");
  EXPECT_EQ(p.Prepared(0), "");
  EXPECT_EQ(p.Prepared(1), "norms");
  EXPECT_EQ(p.Page(1), "") << "asked for once";
  EXPECT_EQ(p->verdict().kind, VerdictKind::kCommit);
  EXPECT_EQ(p.Phased(0), "");
  EXPECT_EQ(p->WaitsFor(), "slot 1 (norms of step 1)");
  EXPECT_EQ(p.Phased(1), "verdict; apply");
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1.NextStep(), {1})), "reduce 0.0");
  EXPECT_EQ(p.Reduced(0), "prepare");
  EXPECT_EQ(p.Prepared(1, kStep1.NextStep()), "");
  EXPECT_EQ(p.Prepared(0, kStep1.NextStep()), "norms");
}

TEST(StepPipelineTest, ASuccessorKeepsNormsThatWerePublishedAndTakesOthersAgain) {
  for (const bool published : {false, true}) {
    Under p(WithNorms(2), 2, /*show_own_page=*/false);
    p.pages[0].prepared = p.pages[1].prepared = PreparedOf(kStep1);
    p.pages[1].phased = kStep1;
    if (published) p.pages[0].phased = kStep1;
    EXPECT_EQ(p.Page(1), "");
    EXPECT_EQ(p.Page(0), "");
    EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1})), published ? "verdict; apply" : "norms");
  }
}

TEST(StepPipelineTest, ASkippedStepNeedsNoNorms) {
  Under p(WithNorms(1), 1);
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1})), "reduce 0.0");
  EXPECT_EQ(p.Reduced(0), "prepare");
  p.pages[0].prepared = PreparedOf(kStep1);
  p.pages[0].prepared->sum_squares.Add(std::nan(""));
  EXPECT_EQ(p.Page(0), "verdict; apply");
  EXPECT_EQ(p->verdict().kind, VerdictKind::kSkip);
}

TEST(StepPipelineTest, AStepFromTheFirstGradientToDone) {
  Under p(2, 2, {true, true});
  EXPECT_EQ(p.Delivered(0, 1, 1), "");
  EXPECT_EQ(p.Delivered(1, 1, 1), "reduce 1.0");
  EXPECT_EQ(p.Delivered(1, 1, 1), "") << "a mark seen again";
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Reduced(1), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1, 1})), "");
  EXPECT_EQ(p.Delivered(1, 0, 1), "reduce 0.0");
  EXPECT_EQ(p.Stepped(1, StepOf(kStep1, {1, 1})), "");
  EXPECT_EQ(p.Reduced(0), "prepare");
  EXPECT_EQ(p.Prepared(0), "");
  EXPECT_EQ(p->WaitsFor(), "slot 1 (PREPARED of step 1)");
  EXPECT_EQ(p.Prepared(1), "verdict; apply");
  EXPECT_EQ(p->verdict().kind, VerdictKind::kCommit);
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p->current(), kStep1.NextStep());
  EXPECT_EQ(p.Applied(), "") << "applied twice";
  EXPECT_EQ(p->WaitsFor(), "rank 0 (step 2)");
}

TEST(StepPipelineTest, PartsAreReducedInOrderAndLateOnesWaitForStep) {
  Under p(2, 1, {true});
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p->WaitsFor(), "rank 1 (gradients of unit 0, step 1)");
  EXPECT_EQ(p.Delivered(1, 0, 1), "reduce 0.0");
  EXPECT_EQ(p.Delivered(0, 0, 2), "") << "one reduce of a unit at a time";
  EXPECT_EQ(p.Reduced(0), "") << "rank 1 may still deliver part 1";
  EXPECT_EQ(p.Stepped(1, StepOf(kStep1, {1})), "reduce 0.1");
  EXPECT_EQ(p.Delivered(0, 0, 3), "") << "late, while part 1 is in hand";
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {3})), "");
  EXPECT_EQ(p.Reduced(0), "reduce 0.2");
  EXPECT_EQ(p.Reduced(0), "prepare");
}

TEST(StepPipelineTest, WhatStepSaysWasDeliveredWas) {
  Under p(1, 1, {true, true});
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {2, 1})), "reduce 0.0; reduce 1.0");
  EXPECT_EQ(p.Reduced(1), "");
  EXPECT_EQ(p.Reduced(0), "reduce 0.1");
  EXPECT_EQ(p.Reduced(0), "prepare");
}

TEST(StepPipelineTest, RankWithoutGradientOfAUnit) {
  Under p(2, 1, {true, true});
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Stepped(1, StepOf(kStep1, {0, 0})), "reduce 0.0");
  EXPECT_EQ(p.Reduced(0), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1, 0})), "prepare") << "nobody delivers unit 1";
}

TEST(StepPipelineTest, JobWithoutUnits) {
  Under p(1, 1, {});
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {})), "prepare");
  EXPECT_EQ(p.Prepared(0), "verdict; apply");
  EXPECT_EQ(p.Applied(), "done");
}

TEST(StepPipelineTest, OwnerOfNothingInAUnit) {
  Under p(1, 1, {false, true});
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Delivered(0, 1, 1), "reduce 1.0");
  EXPECT_EQ(p.Reduced(1), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1, 1})), "prepare");
}

TEST(StepPipelineTest, RecordsOfOtherStepsAndAttemptsAreIgnored) {
  Under p(1, 2, {true});
  const StepId other{Step(1), 1};
  EXPECT_EQ(p.Delivered(0, 0, 1, other), "");
  EXPECT_EQ(p.Stepped(0, StepOf(other, {1})), "");
  EXPECT_EQ(p.Delivered(0, 0, 1), "reduce 0.0");
  EXPECT_EQ(p.Reduced(0), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1})), "prepare");
  EXPECT_EQ(p.Prepared(0), "");
  EXPECT_EQ(p.Prepared(1, other), "");
  p.pages[1].prepared = PreparedOf(kStep1, /*epoch=*/2);
  EXPECT_EQ(p.Page(1), "") << "prepared for other ranges";
  EXPECT_EQ(p.Prepared(1), "verdict; apply");
}

TEST(StepPipelineTest, RejectGoesToTheNextAttempt) {
  Under p(2, 1, {true});
  TrainerStep first = StepOf(kStep1, {0}), second = first;
  second.groups[0][kLr] = 1;
  EXPECT_EQ(p.Stepped(0, first), "");
  EXPECT_EQ(p.Stepped(1, second), "prepare");
  EXPECT_EQ(p.Prepared(0), "verdict; done");
  EXPECT_EQ(p->verdict().kind, VerdictKind::kReject);
  const StepId again{Step(1), 1};
  EXPECT_EQ(p->current(), again);
  EXPECT_EQ(p.Stepped(0, first), "") << "the first attempt's record";
  first.id = second.id = again;
  second.groups[0][kLr] = 0;
  EXPECT_EQ(p.Delivered(0, 0, 1, again), "");
  EXPECT_EQ(p.Stepped(1, second), "reduce 0.0");
  first.parts = {1};
  EXPECT_EQ(p.Stepped(0, first), "");
  EXPECT_EQ(p.Reduced(0), "prepare");
  EXPECT_EQ(p.Prepared(0, again), "verdict; apply");
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p->current(), (StepId{Step(2), 0}));
}

TEST(StepPipelineTest, SuccessorIsBlindUntilItSawItsOwnPage) {
  Under p(1, 1, {true}, /*show_own_page=*/false);
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1})), "");
  EXPECT_EQ(p.Propose({0, 1, 0}), "");
  EXPECT_EQ(p.Page(0), "reduce 0.0; boundary 1");
}

TEST(StepPipelineTest, SuccessorKeepsPreparedAndComputesTheVerdictAgain) {
  Under p(2, 2, {true}, /*show_own_page=*/false);
  TrainerStep a = StepOf(kStep1, {1}), b = a;
  a.loss = 1, b.loss = 3;
  EXPECT_EQ(p.Delivered(0, 0, 1), "");
  EXPECT_EQ(p.Prepared(1), "");
  EXPECT_EQ(p.Stepped(0, a), "");
  EXPECT_EQ(p.Prepared(0, kStep1, {0, 7, 0}), "") << "nothing is reduced or prepared again";
  EXPECT_EQ(p.Delivered(1, 0, 1), "");
  EXPECT_EQ(p.Stepped(1, b), "verdict; apply");
  EXPECT_EQ(p->verdict().loss, 2);
  EXPECT_EQ(p->verdict().proposals, (Proposals{0, 7, 0}));
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p->decided(), (Proposals{0, 7, 0}));
}

TEST(StepPipelineTest, SuccessorStartsAtTheAttemptInHand) {
  Under p(StepPipeline({1, 1, Slot(0), 1, {true}}, {Step(4), 2}, Proposals(), /*rejected_attempts=*/3), 1);
  EXPECT_EQ(p->current(), (StepId{Step(5), 3}));
}

TEST(StepPipelineTest, BoundaryIsDecidedWhenAllHaveOffered) {
  Under p(1, 2, {true});
  EXPECT_EQ(p.Propose({0, 1, 0}), "boundary 1");
  EXPECT_EQ(p->offer(), (Proposals{0, 1, 0}));
  EXPECT_EQ(p.Propose({0, 1, 0}), "");
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "") << "an open offer keeps the step back";
  EXPECT_EQ(p->WaitsFor(), "slot 1 (offer at the boundary before step 1)");
  EXPECT_EQ(p.Offered(1, 1, {0, 2, 0}), "decide 1");
  EXPECT_EQ(p->boundary_decision(), (Proposals{0, 2, 0}));
  EXPECT_EQ(p.BoundaryDone(0, 1), "prepare");
}

TEST(StepPipelineTest, OneOffersAllJoin) {
  Under p(1, 3, {true});
  EXPECT_EQ(p.Offered(2, 1, {0, 1, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1), "");
  EXPECT_EQ(p.Offered(1, 1), "decide 1");
}

TEST(StepPipelineTest, OfferFallsWhenAnotherHasPreparedWithoutOffering) {
  Under p(1, 2, {true});
  EXPECT_EQ(p.Propose({0, 1, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "");
  EXPECT_EQ(p.Prepared(1, kStep1, {0, 1, 0}), "prepare");
  EXPECT_EQ(p.Prepared(0), "verdict; apply");
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p->decided(), (Proposals{0, 1, 0})) << "by the verdict";
  EXPECT_EQ(p.Propose({0, 1, 0}), "");
}

TEST(StepPipelineTest, PreparedAfterHavingOfferedDoesNotWithdraw) {
  Under p(1, 3, {true});
  EXPECT_EQ(p.Propose({0, 1, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "");
  // Slot 1 carried the boundary out and went on; this owner has yet to see slot 2's offer.
  p.pages[1].prepared = PreparedOf(kStep1);
  p.pages[1].boundary_done = {kStep1, 1, 1, {}};
  EXPECT_EQ(p.Offered(1, 1), "");
  EXPECT_EQ(p.Offered(2, 1), "decide 1");
  EXPECT_EQ(p.BoundaryDone(0, 1), "prepare");
}

TEST(StepPipelineTest, NoOfferOnceAnOwnerHasPrepared) {
  Under p(1, 2, {true});
  EXPECT_EQ(p.Prepared(1), "");
  EXPECT_EQ(p.Propose({0, 1, 0}), "");
}

TEST(StepPipelineTest, TwoBoundariesBetweenTwoSteps) {
  Under p(1, 2, {true});
  EXPECT_EQ(p.Propose({0, 1, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}), "");
  EXPECT_EQ(p.Offered(1, 1), "decide 1");
  EXPECT_EQ(p.BoundaryDone(0, 1), "");
  EXPECT_EQ(p.Propose({0, 2, 0}), "") << "slot 1 has not read the offer of boundary 1 yet";
  EXPECT_EQ(p.BoundaryDone(1, 1), "boundary 2");
  EXPECT_EQ(p.Offered(0, 2, {0, 2, 0}), "");
  EXPECT_EQ(p.Offered(1, 2), "decide 2");
  EXPECT_EQ(p.BoundaryDone(0, 2), "");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "prepare");
}

TEST(StepPipelineTest, SuccessorStandsInItsBoundary) {
  Under p(1, 2, {true}, /*show_own_page=*/false);
  p.pages[0].boundary_done = {kStep1, 1, 1, {}};
  p.pages[0].boundary = {kStep1, 2, 1, {0, 2, 0}};
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "");
  EXPECT_EQ(p.Page(0), "") << "boundary 2 is offered, not decided";
  p.pages[1].boundary_done = {kStep1, 1, 1, {}};
  EXPECT_EQ(p.Offered(1, 2, {0, 3, 0}), "decide 2");
}

TEST(StepPipelineTest, OffersDoNotOutliveARejectedAttempt) {
  Under p(2, 2, {true});
  EXPECT_EQ(p.Propose({0, 1, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}), "");
  TrainerStep first = StepOf(kStep1, {0}), second = first;
  second.groups[0][kLr] = 1;
  EXPECT_EQ(p.Stepped(0, first), "");
  EXPECT_EQ(p.Stepped(1, second), "");
  EXPECT_EQ(p.Prepared(1), "prepare");
  EXPECT_EQ(p.Prepared(0), "verdict; done");
  const StepId again{Step(1), 1};
  EXPECT_EQ(p.Page(0), "boundary 1") << "offered anew";
  EXPECT_EQ(p.Offered(0, 1, {0, 1, 0}, again), "");
  EXPECT_EQ(p.Offered(1, 1), "") << "of the attempt before";
  EXPECT_EQ(p.Offered(1, 1, {}, again), "decide 1");
}

TEST(StepPipelineTest, BoundaryChangesRangesWhenReducesHaveEndedAndAllHaveCarriedItOut) {
  Under p(1, 2, {true, true});
  EXPECT_EQ(p.Delivered(0, 0, 1), "reduce 0.0");
  EXPECT_EQ(p.Propose({2, 0, 0}), "boundary 1");
  EXPECT_EQ(p.Offered(0, 1, {2, 0, 0}), "");
  EXPECT_EQ(p.Offered(1, 1), "") << "a reduce is in hand";
  EXPECT_EQ(p.Delivered(0, 1, 1), "") << "and none is begun any more";
  EXPECT_EQ(p.Reduced(0), "decide 1");
  EXPECT_EQ(p.BoundaryDone(0, 1), "");
  EXPECT_EQ(p->WaitsFor(), "slot 1 (boundary 1 before step 1)");
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {1, 1})), "") << "the step belongs to the next ranges";
  EXPECT_EQ(p.BoundaryDone(1, 1), "change 1");
  EXPECT_EQ(p.BoundaryDone(1, 1), "");
  EXPECT_EQ(p->decided().ranges, 2);
}

TEST(StepPipelineTest, VerdictChangesRangesWhenAllAreDone) {
  Under p(1, 2, {true});
  EXPECT_EQ(p.Stepped(0, StepOf(kStep1, {0})), "prepare");
  EXPECT_EQ(p.Prepared(0, kStep1, {2, 0, 0}), "");
  EXPECT_EQ(p.Prepared(1), "verdict; apply");
  EXPECT_EQ(p.Applied(), "done");
  EXPECT_EQ(p->WaitsFor(), "slot 1 (DONE of step 1)");
  EXPECT_EQ(p.Propose({2, 1, 0}), "");
  EXPECT_EQ(p.Done(1, kStep1), "change 0");
}

TEST(StepPipelineTest, SuccessorOfAnOwnerThatWasAboutToChangeRanges) {
  Under p(StepPipeline({1, 2, Slot(0), 1, {true}}, kStep1, Proposals{2, 0, 0}), 2, /*show_own_page=*/false);
  EXPECT_EQ(p.Done(1, {Step(2), 0}), "") << "slot 1 is already past a step in the next ranges";
  EXPECT_EQ(p.Done(0, kStep1), "change 0");
}

TEST(StepPipelineTest, BoundariesRunOnInTheNextRanges) {
  Under p(StepPipeline({1, 2, Slot(0), 2, {true}}, StepId(), Proposals{2, 0, 0}), 2, /*show_own_page=*/false);
  p.pages[0].boundary_done = {kStep1, 1, 1, {}};
  EXPECT_EQ(p.Page(0), "");
  EXPECT_EQ(p.Propose({2, 1, 0}), "") << "slot 1 has not entered yet";
  p.pages[1].boundary_done = {kStep1, 1, 1, {}};
  EXPECT_EQ(p.Page(1), "boundary 2");
  EXPECT_EQ(p.Offered(0, 2, {2, 1, 0}), "");
  EXPECT_EQ(p.Offered(1, 2), "decide 2");
}

}  // namespace
}  // namespace sherd

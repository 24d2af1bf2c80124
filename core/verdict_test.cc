#include "core/verdict.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TrainerStep Rank(uint64_t samples, double weight, double loss) {
  TrainerStep s;
  s.id = {Step(3), 0};
  s.samples = samples;
  s.weight = weight;
  s.loss = loss;
  s.groups.resize(2);
  for (GroupScalars& g : s.groups) g[kEps] = 1e-8;
  return s;
}

OwnerPrepared Owner(double sum_squares, Proposals proposals = {}) {
  OwnerPrepared p;
  p.id = {Step(3), 0};
  p.sum_squares.Add(sum_squares);
  p.proposals = proposals;
  return p;
}

TEST(VerdictTest, CommitWithMeansWeightedBySamples) {
  const Verdict v = Decide({Rank(3, 0.75, 2), Rank(1, 0.25, 6), Rank(0, 0, kNaN)}, {Owner(9), Owner(16)}, {});
  EXPECT_EQ(v.id, (StepId{Step(3), 0}));
  EXPECT_EQ(v.kind, VerdictKind::kCommit);
  EXPECT_EQ(v.samples, 4);
  EXPECT_EQ(v.loss, 3) << "the loss of a rank without samples does not count";
  EXPECT_EQ(v.grad_norm, 5);
  EXPECT_EQ(v.clip, 1);
  EXPECT_EQ(v.grad_scale, 1);
  EXPECT_EQ(v.groups.size(), 2);
  EXPECT_EQ(v.reason, "");
}

TEST(VerdictTest, GradientsAreDividedByWeightAndLossScale) {
  TrainerStep a = Rank(1, 2, 0), b = Rank(1, 2, 0);
  a.loss_scale.scale = b.loss_scale.scale = 8;
  const Verdict v = Decide({a, b}, {Owner(64 * 64)}, {});
  EXPECT_EQ(v.grad_scale, 1.0 / 32);
  EXPECT_EQ(v.grad_norm, 2);
}

// The scale that a step's backward used divides its gradients; what follows from the step is for the next
// one.
TEST(VerdictTest, TheLossScaleMovesAfterTheStep) {
  LossScaleSpec spec = DynamicLossScale();
  spec.initial = 8, spec.window = 1, spec.hysteresis = 1, spec.min = 8;
  TrainerStep a = Rank(1, 1, 0), b = a;
  a.loss_scale = b.loss_scale = NextLossScale(spec, FirstLossScale(spec), false);
  Verdict v = Decide({a, b}, {Owner(16 * 16)}, spec);
  EXPECT_EQ(v.grad_norm, 1);
  EXPECT_EQ(v.loss_scale.scale, 16) << "doubled, for the next step";
  EXPECT_EQ(v.loss_scale.i, 2);
  a.loss_scale = b.loss_scale = v.loss_scale;
  v = Decide({a, b}, {Owner(kInf)}, spec);
  EXPECT_EQ(v.kind, VerdictKind::kSkip);
  EXPECT_EQ(v.loss_scale.scale, 8);
  EXPECT_EQ(v.loss_scale.skipped, 1);
  EXPECT_EQ(v.reason, "");
  a.loss_scale = b.loss_scale = v.loss_scale;
  v = Decide({a, b}, {Owner(kNaN)}, spec);
  EXPECT_EQ(v.kind, VerdictKind::kSkip);
  EXPECT_EQ(v.loss_scale.floor, 1);
  EXPECT_NE(v.reason.find("smallest loss scale, 8"), std::string::npos) << v.reason;
  // A rejected step changes nothing.
  b.groups[0][kLr] = 7;
  v = Decide({a, b}, {Owner(kNaN)}, spec);
  EXPECT_EQ(v.kind, VerdictKind::kReject);
  EXPECT_EQ(v.loss_scale, a.loss_scale);
}

TEST(VerdictTest, ClipsAsTorchDoes) {
  TrainerStep a = Rank(1, 1, 0);
  a.max_grad_norm = 2;
  Verdict v = Decide({a}, {Owner(25)}, {});
  EXPECT_EQ(v.grad_norm, 5) << "before clipping";
  EXPECT_EQ(v.clip, 2 / (5 + 1e-6));
  EXPECT_EQ(v.grad_scale, 2 / (5 + 1e-6));
  a.max_grad_norm = 6;
  v = Decide({a}, {Owner(25)}, {});
  EXPECT_EQ(v.clip, 1);
  a.max_grad_norm = 0;
  EXPECT_EQ(Decide({a}, {Owner(25)}, {}).clip, 1);
}

TEST(VerdictTest, SkipsWhatIsNotFinite) {
  for (double bad : {kNaN, kInf}) {
    TrainerStep a = Rank(1, 1, 0);
    a.max_grad_norm = 1;
    a.imports = {4};
    const Verdict v = Decide({a}, {Owner(1), Owner(bad, {2, 0, 0})}, {});
    EXPECT_EQ(v.kind, VerdictKind::kSkip);
    EXPECT_FALSE(std::isfinite(v.grad_norm));
    EXPECT_EQ(v.proposals.ranges, 2) << "a skipped step still carries proposals";
    EXPECT_EQ(v.imports, std::vector<uint64_t>{4}) << "and values written by hand";
  }
}

TEST(VerdictTest, RejectNamesTheFieldAndBothValues) {
  const auto reason = [](auto change) {
    TrainerStep other = Rank(1, 1, 0);
    change(other);
    const Verdict v = Decide({Rank(1, 1, 0), Rank(1, 1, 0), other}, {Owner(1, {1, 1, 1})}, {});
    EXPECT_EQ(v.kind, VerdictKind::kReject);
    EXPECT_EQ(v.proposals, Proposals()) << "nothing happens at a rejected step";
    EXPECT_TRUE(v.imports.empty());
    return v.reason;
  };
  EXPECT_EQ(
      reason([](TrainerStep& s) { s.groups[1][kLr] = 0.5; }),
      "ranks disagree on lr of parameter group 1: rank 0 has 0, rank 2 has 0.5; every rank must pass the "
      "same value");
  for (int f = 0; f < kScalarFields; ++f) {
    EXPECT_NE(reason([f](TrainerStep& s) { s.groups[0][f] = 3; }).find(ScalarFieldName(f)),
              std::string::npos);
  }
  EXPECT_EQ(
      reason([](TrainerStep& s) { s.max_grad_norm = 7; }),
      "ranks disagree on max_grad_norm: rank 0 has 0, rank 2 has 7; every rank must pass the same value");
  EXPECT_EQ(
      reason([](TrainerStep& s) { s.loss_scale.scale = 2; }),
      "ranks disagree on the loss scale: rank 0 has 1, rank 2 has 2; every rank must pass the same value");
  EXPECT_EQ(reason([](TrainerStep& s) { s.loss_scale.i = 4; }),
            "ranks disagree on the history of the loss scale: rank 0 has seen 0 steps (0 skipped), rank 2 4 "
            "(0); restart both from the same state");
  EXPECT_EQ(
      reason([](TrainerStep& s) {
        s.groups.resize(1);
        s.imports = {1};
      }),
      "ranks disagree on the number of parameter groups: rank 0 has 2, rank 2 has 1; every rank must pass "
      "the same value");
}

TEST(VerdictTest, RejectsScalarsNoOptimizerCanWorkWith) {
  const auto reason = [](auto change) {
    TrainerStep s = Rank(1, 1, 0);
    change(s);
    const Verdict v = Decide({s, s}, {Owner(1)}, {});
    EXPECT_EQ(v.kind, VerdictKind::kReject);
    return v.reason;
  };
  EXPECT_EQ(reason([](TrainerStep& s) { s.groups[1][kEps] = kNaN; }),
            "eps of parameter group 1 is nan: it must be finite and above 0 in fp32")
      << "NaN agrees with NaN";
  EXPECT_EQ(reason([](TrainerStep& s) { s.groups[0][kBeta2] = 1; }),
            "beta2 of parameter group 0 is 1: it must be at least 0 and below 1");
  EXPECT_EQ(reason([](TrainerStep& s) { s.groups[0][kLr] = -1; }),
            "lr of parameter group 0 is -1: it must be finite and at least 0");
  EXPECT_NE(reason([](TrainerStep& s) { s.groups[0][kDampening] = kInf; }), "");
  EXPECT_NE(reason([](TrainerStep& s) { s.groups[0][kNesterov] = 1; }), "");
  EXPECT_NE(reason([](TrainerStep& s) { s.loss_scale.scale = 0; }), "");
  EXPECT_NE(reason([](TrainerStep& s) { s.max_grad_norm = kNaN; }), "");
}

TEST(VerdictTest, RejectsAStepWithoutSamples) {
  const Verdict v = Decide({Rank(0, 0, 0), Rank(0, 0, 0)}, {Owner(0)}, {});
  EXPECT_EQ(v.kind, VerdictKind::kReject);
  EXPECT_EQ(v.reason, "no rank contributed a sample to this step; give at least one rank a batch");
  EXPECT_EQ(Decide({Rank(0, kNaN, 0)}, {Owner(0)}, {}).kind, VerdictKind::kReject);
}

TEST(VerdictTest, UnionOfBitsOfAnyLength) {
  TrainerStep a = Rank(1, 1, 0), b = a;
  a.has_grad = {0b0101};
  b.has_grad = {0b0110, 1};
  const Verdict v = Decide({a, b}, {Owner(1)}, {});
  EXPECT_EQ(v.has_grad, (std::vector<uint64_t>{0b0111, 1}));
  EXPECT_TRUE(TestBit(v.has_grad, 64));
  EXPECT_FALSE(TestBit(v.has_grad, 65));
}

TEST(VerdictTest, ImportsInRankOrderAndLargestProposals) {
  TrainerStep a = Rank(1, 1, 0), b = a;
  a.imports = {9, 2};
  b.imports = {5};
  const Verdict v = Decide({a, b}, {Owner(0, {1, 5, 0}), Owner(0, {2, 4, 0}), Owner(0, {0, 0, 3})}, {});
  EXPECT_EQ(v.imports, (std::vector<uint64_t>{9, 2, 5}));
  EXPECT_EQ(v.proposals, (Proposals{2, 5, 3}));
}

TEST(VerdictTest, NormDoesNotDependOnTheNumberOfOwners) {
  EXPECT_EQ(Decide({Rank(1, 1, 0)}, {Owner(1e16), Owner(1), Owner(1)}, {}).grad_norm,
            Decide({Rank(1, 1, 0)}, {Owner(1), Owner(1e16 + 1 - 1), Owner(1)}, {}).grad_norm);
  OwnerPrepared all = Owner(1e16);
  all.sum_squares.Add(1);
  all.sum_squares.Add(1);
  EXPECT_EQ(Decide({Rank(1, 1, 0)}, {Owner(1e16), Owner(1), Owner(1)}, {}).grad_norm,
            Decide({Rank(1, 1, 0)}, {all}, {}).grad_norm);
}

}  // namespace
}  // namespace sherd

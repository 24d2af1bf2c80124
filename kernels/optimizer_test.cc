#include "kernels/optimizer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/simd_targets_for_test.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace {

const std::vector<OptimizerKind> kKinds = [] {
  std::vector<OptimizerKind> kinds;
  for (const OptimizerInfo& info : kOptimizers) kinds.push_back(info.kind);
  return kinds;
}();
constexpr int64_t kElements = 3 * kBlockElements;

// One setting for each branch of Prepare.
std::vector<Hyper> Settings() {
  std::vector<Hyper> settings(6);
  settings[1].weight_decay = 0.1;
  settings[2].momentum = 0.9;
  settings[2].dampening = 0.3;
  settings[3].momentum = 0.8;
  settings[3].nesterov = true;
  settings[3].weight_decay = 0.01;
  settings[4].beta1 = 0;
  settings[4].beta2 = 0;
  settings[5].lr_decay = 0.25;
  settings[5].initial_accumulator_value = 0.5;
  return settings;
}

struct State {
  State(OptimizerKind kind, int64_t size, uint64_t seed, bool special)
      : random(seed), param(RandomFloats(size, random, special)) {
    for (int k = 0; k < kMaxPlanes; ++k) {
      planes.push_back(RandomFloats(size, random, special));
      // A second moment is a sum of squares, and so is Adagrad's only plane.
      if (k == 1 || kind == OptimizerKind::kAdagrad) {
        for (int64_t i = 0; i < size; ++i) planes[k][i] = std::fabs(planes[k][i]);
      }
    }
  }
  UpdateArgs Args(const Floats& grad) {
    return {param.data(), {planes[0].data(), planes[1].data(), planes[2].data()}, grad.data()};
  }
  std::mt19937_64 random;
  Floats param;
  std::vector<Floats> planes;
};

TEST(Optimizer, EveryInstructionSetGivesTheBitsOfThePlainLoop) {
  const uint64_t seed = 987654321;
  RecordProperty("seed", std::to_string(seed));
  const int targets = ForEachSimdTarget([&] {
    for (OptimizerKind kind : kKinds) {
      for (const Hyper& hyper : Settings()) {
        for (bool special : {false, true}) {
          SCOPED_TRACE(::testing::Message() << Info(kind).name << " special " << special << " seed " << seed);
          State want(kind, kElements, seed, special), got(kind, kElements, seed, special);
          std::mt19937_64 random(seed + 1);
          for (uint64_t step = 1; step <= 5; ++step) {
            const Floats grad = RandomFloats(kElements, random, special);
            const Scalars s = Prepare(kind, hyper, step, 0.37f);
            ResolveScalar(kind)(want.Args(grad), s, kElements);
            Resolve(kind)(got.Args(grad), s, kElements);
            ASSERT_TRUE(SameBits(got.param.data(), want.param.data(), kElements)) << "step " << step;
            for (int k = 0; k < kMaxPlanes; ++k) {
              ASSERT_TRUE(SameBits(got.planes[k].data(), want.planes[k].data(), kElements)) << "plane " << k;
            }
          }
        }
      }
    }
  });
  EXPECT_GE(targets, 1);
}

TEST(Optimizer, TwoPassesAreTheUpdateAndKeepWhatWas) {
  ForEachSimdTarget([] {
    for (OptimizerKind kind : kKinds) {
      const TwoPasses passes = ResolveTwoPasses(kind);
      ASSERT_EQ(passes.move != nullptr, Info(kind).norms);
      ASSERT_EQ(passes.follow != nullptr, Info(kind).norms);
      ASSERT_EQ(ResolveNormsScalar(kind) != nullptr, Info(kind).norms);
      if (!Info(kind).norms) continue;
      for (Hyper hyper : Settings()) {
        State want(kind, kBlockElements, 15, false), got(kind, kBlockElements, 15, false);
        const Floats grad = RandomFloats(kBlockElements, got.random, false);
        Scalars s = Prepare(kind, hyper, 4, 0.37f);
        double want_norms[2], norms[2];
        ResolveNormsScalar(kind)(want.Args(grad), s, want_norms);
        const State before = got;
        Floats moved = grad, undo(kMaxUndoElements);
        std::atomic<uint64_t> saved{0};
        passes.move(got.Args(moved), moved.data(), s, undo.data(), &saved, norms);
        EXPECT_TRUE(SameBits(norms, want_norms, 2));
        EXPECT_GT(norms[1], 0);
        EXPECT_EQ(saved, static_cast<uint64_t>(kBlockElements));
        EXPECT_TRUE(SameBits(got.param.data(), before.param.data(), kBlockElements));
        EXPECT_TRUE(SameBits(undo.data(), grad.data(), kBlockElements));
        for (int k = 0; k < 2; ++k) {
          EXPECT_TRUE(
              SameBits(undo.data() + (k + 1) * kBlockElements, before.planes[k].data(), kBlockElements));
        }
        hyper.lr *= 3.7;
        s = Prepare(kind, hyper, 4, 0.37f);
        ResolveScalar(kind)(want.Args(grad), s, kBlockElements);
        saved = 0;
        passes.follow(got.param.data(), moved.data(), s, undo.data(), &saved);
        EXPECT_EQ(saved, static_cast<uint64_t>(kBlockElements));
        EXPECT_TRUE(SameBits(undo.data(), before.param.data(), kBlockElements));
        EXPECT_TRUE(SameBits(got.param.data(), want.param.data(), kBlockElements));
        for (int k = 0; k < 2; ++k) {
          EXPECT_TRUE(SameBits(got.planes[k].data(), want.planes[k].data(), kBlockElements)) << "plane " << k;
        }
      }
    }
  });
}

TEST(Optimizer, BlockByBlockIsTheSameAsAllAtOnce) {
  for (OptimizerKind kind : kKinds) {
    State whole(kind, kElements, 5, false), parts(kind, kElements, 5, false);
    std::mt19937_64 random(6);
    const Floats grad = RandomFloats(kElements, random, false);
    const Scalars s = Prepare(kind, Hyper(), 3, 1);
    Resolve(kind)(whole.Args(grad), s, kElements);
    for (int64_t at = 0; at < kElements; at += kBlockElements) {
      UpdateArgs args = parts.Args(grad);
      args.param += at;
      args.grad += at;
      for (float*& plane : args.planes) plane += at;
      Resolve(kind)(args, s, kBlockElements);
    }
    EXPECT_TRUE(SameBits(whole.param.data(), parts.param.data(), kElements));
  }
}

TEST(Optimizer, PaddingStaysZero) {
  ForEachSimdTarget([] {
    for (OptimizerKind kind : kKinds) {
      for (Hyper hyper : Settings()) {
        Floats param(kBlockElements), a(kBlockElements), b(kBlockElements), c(kBlockElements),
            grad(kBlockElements);
        const Floats zero(kBlockElements);
        for (uint64_t step = 1; step <= 3; ++step) {
          Resolve(kind)({param.data(), {a.data(), b.data(), c.data()}, grad.data()},
                        Prepare(kind, hyper, step, 0.5f), kBlockElements);
        }
        EXPECT_TRUE(SameBits(param.data(), zero.data(), kBlockElements));
        if (hyper.initial_accumulator_value != 0 && kind == OptimizerKind::kAdagrad) continue;
        EXPECT_TRUE(SameBits(a.data(), zero.data(), kBlockElements));
        EXPECT_TRUE(SameBits(b.data(), zero.data(), kBlockElements));
      }
    }
  });
}

TEST(Optimizer, SaveCopiesTheBlockAndNothingElse) {
  ForEachSimdTarget([] {
    for (OptimizerKind kind : kKinds) {
      const int planes = Info(kind).planes;
      State state(kind, kElements, 8, true);
      const Floats grad(kElements);
      Floats undo(kMaxUndoElements + kBlockElements);
      for (int64_t i = 0; i < undo.size(); ++i) undo[i] = 42;
      ResolveSave(kind)(state.Args(grad), undo.data());
      EXPECT_TRUE(SameBits(undo.data(), state.param.data(), kBlockElements));
      for (int k = 0; k < planes; ++k) {
        EXPECT_TRUE(SameBits(undo.data() + (k + 1) * kBlockElements, state.planes[k].data(), kBlockElements));
      }
      for (int64_t i = (planes + 1) * kBlockElements; i < undo.size(); ++i) ASSERT_EQ(undo[i], 42);
    }
  });
}

TEST(Optimizer, JournaledGivesTheSameBitsAndKeepsWhatWas) {
  ForEachSimdTarget([] {
    for (OptimizerKind kind : kKinds) {
      SCOPED_TRACE(Info(kind).name);
      const int planes = Info(kind).planes;
      State before(kind, kBlockElements, 21, true), want = before, got = before;
      const Floats grad = RandomFloats(kBlockElements, before.random, true);
      const Scalars s = Prepare(kind, Hyper(), 3, 0.37f);
      Floats undo(kMaxUndoElements + kBlockElements);
      for (int64_t i = 0; i < undo.size(); ++i) undo[i] = 42;
      std::atomic<uint64_t> saved{0};
      Resolve(kind)(want.Args(grad), s, kBlockElements);
      ResolveJournaled(kind)(got.Args(grad), s, undo.data(), &saved);
      EXPECT_EQ(saved.load(), static_cast<uint64_t>(kBlockElements));
      EXPECT_TRUE(SameBits(got.param.data(), want.param.data(), kBlockElements));
      EXPECT_TRUE(SameBits(undo.data(), before.param.data(), kBlockElements));
      for (int k = 0; k < planes; ++k) {
        EXPECT_TRUE(SameBits(got.planes[k].data(), want.planes[k].data(), kBlockElements));
        EXPECT_TRUE(
            SameBits(undo.data() + (k + 1) * kBlockElements, before.planes[k].data(), kBlockElements));
      }
      for (int64_t i = (planes + 1) * kBlockElements; i < undo.size(); ++i) ASSERT_EQ(undo[i], 42);
    }
  });
}

TEST(Optimizer, InfoNamesPlanesAsTorchDoes) {
  EXPECT_STREQ(Info(OptimizerKind::kSgd).plane_names[0], "momentum_buffer");
  for (OptimizerKind kind : {OptimizerKind::kAdam, OptimizerKind::kAdamW}) {
    EXPECT_EQ(Info(kind).planes, 2);
    EXPECT_STREQ(Info(kind).plane_names[0], "exp_avg");
    EXPECT_STREQ(Info(kind).plane_names[1], "exp_avg_sq");
  }
  EXPECT_STREQ(Info(OptimizerKind::kAdagrad).plane_names[0], "sum");
  for (OptimizerKind kind : kKinds) {
    EXPECT_EQ(FindOptimizer(Info(kind).name), &Info(kind));
    EXPECT_EQ(FindOptimizer(static_cast<uint8_t>(kind)), &Info(kind));
  }
  EXPECT_EQ(FindOptimizer("adadelta"), nullptr);
  EXPECT_EQ(FindOptimizer(uint8_t{0}), nullptr);
  EXPECT_EQ(FindOptimizer(uint8_t{200}), nullptr);
}

TEST(Optimizer, BiasCorrectionIsOneMinusThePower) {
  for (double beta : {0.0, 0.5, 0.9, 0.95, 0.999, 0.999999}) {
    for (uint64_t step : {1u, 2u, 3u, 10u, 1000u, 123457u, 100000000u}) {
      EXPECT_NEAR(BiasCorrection(beta, step), 1 - std::pow(beta, static_cast<double>(step)), 1e-10);
    }
  }
}

TEST(Optimizer, CheckHyperNamesFieldAndValue) {
  const auto problem = [](OptimizerKind kind, void (*change)(Hyper&)) {
    Hyper h;
    change(h);
    return CheckHyper(kind, h);
  };
  const OptimizerKind sgd = OptimizerKind::kSgd, adamw = OptimizerKind::kAdamW;
  EXPECT_EQ(problem(sgd, [](Hyper&) {}), "");
  EXPECT_EQ(problem(adamw, [](Hyper&) {}), "");
  EXPECT_EQ(problem(adamw, [](Hyper& h) { h.lr = -1; }), "lr is -1: it must be finite and at least 0");
  EXPECT_EQ(problem(adamw, [](Hyper& h) { h.beta2 = 1; }), "beta2 is 1: it must be at least 0 and below 1");
  EXPECT_NE(problem(adamw, [](Hyper& h) { h.beta1 = NAN; }), "");
  EXPECT_NE(problem(adamw, [](Hyper& h) { h.eps = 0; }), "");
  EXPECT_NE(problem(adamw, [](Hyper& h) { h.eps = 1e-60; }), "");
  EXPECT_NE(problem(adamw, [](Hyper& h) { h.weight_decay = INFINITY; }), "");
  EXPECT_NE(problem(sgd, [](Hyper& h) { h.nesterov = true; }), "");
  EXPECT_EQ(problem(sgd, [](Hyper& h) { h.nesterov = true, h.momentum = 0.9; }), "");
  EXPECT_NE(problem(sgd, [](Hyper& h) { h.nesterov = true, h.momentum = 0.9, h.dampening = 0.1; }), "");
  EXPECT_NE(problem(sgd, [](Hyper& h) { h.momentum = -0.1; }), "");
  EXPECT_NE(problem(sgd, [](Hyper& h) { h.dampening = NAN; }), "");
  EXPECT_EQ(problem(OptimizerKind::kAdagrad, [](Hyper& h) { h.eps = 0; }),
            "eps is 0: it must be above 0 in fp32, for example 1e-8");
  EXPECT_NE(problem(OptimizerKind::kAdagrad, [](Hyper& h) { h.lr_decay = -1; }), "");
  EXPECT_NE(problem(OptimizerKind::kAdagrad, [](Hyper& h) { h.initial_accumulator_value = NAN; }), "");
  EXPECT_EQ(problem(OptimizerKind::kLion, [](Hyper& h) { h.eps = 0; }), "") << "Lion has none";
  EXPECT_NE(problem(OptimizerKind::kLion, [](Hyper& h) { h.beta1 = 1; }), "");
}

TEST(Optimizer, StopsAtBrokenContracts) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(Prepare(OptimizerKind::kAdam, Hyper(), 0, 1), "tensor_step");
  EXPECT_DEATH(Resolve(static_cast<OptimizerKind>(77)), "unknown OptimizerKind");
  EXPECT_DEATH(Info(static_cast<OptimizerKind>(0)), "unknown OptimizerKind");
}

}  // namespace
}  // namespace kernels
}  // namespace sherd

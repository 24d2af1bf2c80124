// ZeroOptimizer in bf16 and fp16 on real shard servers: what parameters are, what gradients become,
// overflows.
#include <ATen/ATen.h>
#include <signal.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/torch/zero_optimizer.h"
#include "gtest/gtest.h"
#include "tests/torch/small_cluster.h"

namespace sherd::tests {
namespace {

using torch::NamedTensors;
using torch::ZeroOptimizer;

std::unique_ptr<ZeroOptimizer> MustCreate(absl::StatusOr<std::unique_ptr<ZeroOptimizer>> zero) {
  if (zero.ok()) return *std::move(zero);
  ADD_FAILURE() << zero.status();
  std::fflush(nullptr);
  ::_exit(1);
}

at::ScalarType TorchType(DType dtype) { return dtype == DType::kBFloat16 ? at::kBFloat16 : at::kHalf; }

at::Tensor Values(at::IntArrayRef shape, double phase) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return at::sin(at::arange(n, at::kFloat) * 1.3 + phase).mul(0.3).reshape(shape);
}

// Computes in fp32 from parameters of whatever type: this CPU has no arithmetic in fp16. `large` is big
// enough for its gradient to be computed in staging.
struct Model {
  explicit Model(at::ScalarType type)
      : large(Values({400, 400}, 1).mul(0.1).to(type)),
        bias(Values({400}, 2).to(type)),
        norm(at::ones({400})) {
    for (at::Tensor* t : {&large, &bias, &norm}) t->requires_grad_(true);
    parameters.insert("large", large);
    parameters.insert("bias", bias);
    parameters.insert("norm", norm);
  }
  at::Tensor Loss(SampleRange samples) const {
    const at::Tensor rows = at::arange(samples.begin, samples.end, at::kFloat).unsqueeze(1);
    const at::Tensor x = at::sin(rows + at::arange(400, at::kFloat) * 0.1);
    const at::Tensor h = at::tanh(x.matmul(large.to(at::kFloat)) + bias.to(at::kFloat));
    return (h * norm.to(at::kFloat) - x).square().mean();
  }
  at::Tensor large, bias, norm;
  NamedTensors parameters;
};

ZeroOptions Options(int stage, int accumulation, uint64_t steps) {
  return ZeroOptions()
      .stage(stage)
      .accumulation(accumulation)
      .global_batch(6)
      .steps(steps)
      .max_grad_norm(1.0)
      .bucket_elements(1000)
      .seed(5);
}

LossScaleSpec QuickScale(double initial) {
  LossScaleSpec spec = DynamicLossScale();
  spec.initial = initial, spec.window = 3, spec.hysteresis = 1;
  return spec;
}

std::string BytesOf(const at::Tensor& t) {
  const at::Tensor whole = t.detach().contiguous();
  return std::string(static_cast<const char*>(whole.data_ptr()), whole.nbytes());
}

// The fp32 master of a parameter.
at::Tensor Master(Session& session, const std::string& name) {
  const TensorInfo& info = *session.memory().layout().Find(name);
  return at::from_blob(session.memory().plane(0) + info.blocks.begin * kBlockElements, info.spec.shape,
                       at::kFloat);
}

// Type, stage, world size, servers, micro-batches.
class MixedPrecisionTest : public ::testing::TestWithParam<std::tuple<DType, int, int, int, int>> {};

TEST_P(MixedPrecisionTest, ParametersAreTheMastersRounded) {
  const auto [dtype, stage, world, servers, accumulation] = GetParam();
  SmallCluster cluster(servers);
  const std::vector<RankEnd> ends =
      cluster.RunRanks(world, [&, dtype = dtype, stage = stage, accumulation = accumulation](
                                  Session& session, int, std::string* result) {
        Model model(at::kFloat);
        const ZeroOptions options = Options(stage, accumulation, 12).compute(dtype);
        auto zero = MustCreate(
            ZeroOptimizer::Create(session, model.parameters, SgdOptions(0.5).momentum(0.9), options));
        double first = 0, last = 0;
        while (Batch batch = zero->Begin()) {
          at::Tensor loss;
          if (!batch.samples.empty()) {
            loss = model.Loss(batch.samples);
            zero->Scale(loss).backward();
          }
          auto info = zero->Step(loss);
          ASSERT_TRUE(info.ok()) << info.status();
          if (!info->complete) continue;
          EXPECT_EQ(info->loss_scale, dtype == DType::kFloat16 ? 65536 : 1);
          EXPECT_FALSE(info->skipped);
          if (info->step == 1) first = info->loss;
          last = info->loss;
          for (const auto& item : model.parameters) {
            ASSERT_EQ(item.value().scalar_type(), TorchType(dtype));
            ASSERT_TRUE(at::equal(item.value().detach(), Master(session, item.key()).to(TorchType(dtype))))
                << item.key();
          }
        }
        EXPECT_LT(last, 0.8 * first);
        *result = BytesOf(Master(session, "large")) + BytesOf(model.bias);
        ASSERT_TRUE(zero->Detach().ok());
      });
  for (const RankEnd& end : ends) {
    EXPECT_FALSE(end.result.empty());
    EXPECT_TRUE(end.result == ends[0].result);
  }
}

INSTANTIATE_TEST_SUITE_P(All, MixedPrecisionTest,
                         ::testing::Values(std::tuple(DType::kBFloat16, 0, 1, 1, 1),
                                           std::tuple(DType::kBFloat16, 1, 2, 2, 2),
                                           std::tuple(DType::kBFloat16, 2, 2, 1, 2),
                                           std::tuple(DType::kFloat16, 1, 2, 1, 3),
                                           std::tuple(DType::kFloat16, 2, 3, 2, 1)));

// With one micro-batch, neither the stage nor the number of servers changes a bit.
TEST(MixedPrecision, StagesAndServersGiveTheSameBits) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::string first;
    for (const auto& [stage, servers] : {std::pair(0, 1), std::pair(1, 3), std::pair(2, 2)}) {
      SmallCluster cluster(servers);
      const std::vector<RankEnd> ends =
          cluster.RunRanks(2, [dtype = dtype, stage = stage](Session& session, int, std::string* result) {
            Model model(TorchType(dtype));  // found by the parameters' type; `norm` stays fp32
            const ZeroOptions options = Options(stage, 1, 5).stochastic_rounding(true);
            auto zero = MustCreate(
                ZeroOptimizer::Create(session, model.parameters, AdamWOptions().lr(1e-2), options));
            EXPECT_EQ(model.norm.scalar_type(), at::kFloat);
            EXPECT_EQ(model.large.scalar_type(), TorchType(dtype));
            while (Batch batch = zero->Begin()) {
              const at::Tensor loss = model.Loss(batch.samples);
              zero->Scale(loss).backward();
              ASSERT_TRUE(zero->Step(loss).ok());
            }
            // The large gradient was computed in staging: only what is small was copied.
            EXPECT_LT(zero->traffic().staged_bytes, 2 * 400 * 400 * 2);
            *result = BytesOf(Master(session, "large")) + BytesOf(model.large) + BytesOf(model.bias) +
                      BytesOf(model.norm);
          });
      if (first.empty()) first = ends[0].result;
      EXPECT_FALSE(first.empty());
      EXPECT_TRUE(ends[0].result == first) << stage << " " << servers;
    }
  }
}

// 256 + 1 is 256 in bf16: micro-batches are summed in fp32, whoever sums them.
TEST(MixedPrecision, MicroBatchesAreSummedInFp32) {
  for (const int stage : {0, 1, 2}) {
    SmallCluster cluster(1);
    cluster.RunRanks(1, [stage](Session& session, int, std::string*) {
      at::Tensor w = at::zeros({300}, at::kBFloat16).requires_grad_();
      NamedTensors parameters;
      parameters.insert("w", w);
      auto zero = MustCreate(ZeroOptimizer::Create(
          session, parameters, SgdOptions(1),
          ZeroOptions().stage(stage).accumulation(4).steps(1).communication(DType::kFloat32)));
      for (int micro = 0; micro < 4; ++micro) {
        ASSERT_TRUE(zero->Begin());
        (w.to(at::kFloat).sum() * (micro == 0 ? 256.0 : 1.0)).backward();
        ASSERT_TRUE(zero->Step().ok());
      }
      EXPECT_EQ(Master(session, "w")[7].item<float>(), -259.0f / 4) << stage;
      EXPECT_EQ(w[7].item<float>(), -65.0f) << "the nearest in bf16, the even one";
    });
  }
}

// One rank's gradient overflows: all skip, the scale halves for the next step, nothing else moves; growth at
// the exact step. A trainer that dies meanwhile is replaced by one that knows the scale.
TEST(MixedPrecision, AnOverflowOnOneRankSkipsAll) {
  for (const int stage : {1, 2}) {
    SmallCluster cluster(2);
    cluster.RunRanks(2, [stage](Session& session, int life, std::string*) {
      Model model(at::kFloat);
      const ZeroOptions options = Options(stage, 1, 12).compute(DType::kFloat16).loss_scale(QuickScale(1024));
      auto zero = MustCreate(ZeroOptimizer::Create(session, model.parameters, AdamWOptions(), options));
      // Overflow in step 3; then 3 clean steps that follow a clean one double it: after step 7, and 10.
      const std::vector<double> scales = {1024, 1024, 1024, 512, 512, 512, 512, 1024, 1024, 1024, 2048, 2048};
      std::string before = BytesOf(Master(session, "large"));
      while (Batch batch = zero->Begin()) {
        EXPECT_EQ(zero->loss_scale(), scales[batch.step - 1]) << batch.step;
        const at::Tensor loss = model.Loss(batch.samples);
        at::Tensor scaled = zero->Scale(loss);
        // Finite as a loss, but its gradients do not fit into fp16.
        if (batch.step == 3 && session.rank() == 1) scaled = scaled * 1e9;
        scaled.backward();
        if (batch.step == 6 && session.rank() == 0 && life == 0) {
          std::fflush(nullptr);
          ::raise(SIGKILL);
        }
        auto info = zero->Step(loss);
        ASSERT_TRUE(info.ok()) << info.status();
        EXPECT_EQ(info->skipped, batch.step == 3);
        EXPECT_EQ(info->loss_scale, scales[batch.step - 1]);
        EXPECT_EQ(info->skipped_steps, batch.step >= 3 ? 1 : 0);
        EXPECT_EQ(std::isfinite(info->grad_norm), batch.step != 3);
        const std::string after = BytesOf(Master(session, "large"));
        EXPECT_EQ(after == before, batch.step == 3) << batch.step;
        before = after;
      }
    });
  }
}

TEST(MixedPrecision, ANanInBf16AndFp32IsSkippedAndCounted) {
  for (const bool bf16 : {false, true}) {
    SmallCluster cluster(1);
    cluster.RunRanks(2, [bf16](Session& session, int, std::string*) {
      Model model(bf16 ? at::kBFloat16 : at::kFloat);
      auto zero =
          MustCreate(ZeroOptimizer::Create(session, model.parameters, AdamWOptions(), Options(2, 1, 4)));
      while (Batch batch = zero->Begin()) {
        at::Tensor loss = model.Loss(batch.samples);
        if (batch.step == 2 && session.rank() == 0) loss = loss * std::numeric_limits<double>::quiet_NaN();
        zero->Scale(loss).backward();
        auto info = zero->Step(loss);
        ASSERT_TRUE(info.ok()) << info.status();
        EXPECT_EQ(info->skipped, batch.step == 2);
        EXPECT_EQ(info->skipped_steps, batch.step >= 2 ? 1 : 0);
        EXPECT_EQ(info->loss_scale, 1);
        EXPECT_TRUE(at::isfinite(Master(session, "large")).all().item<bool>());
      }
      EXPECT_EQ(session.memory().CurrentLossScale().skipped, 1);
      // Skipped steps do not count as updates of a tensor.
      EXPECT_EQ(session.memory().updates(sherd::Step(4)), 3);
    });
  }
}

TEST(MixedPrecision, TheFloorEndsTraining) {
  SmallCluster cluster(1);
  cluster.RunRanks(1, [](Session& session, int, std::string*) {
    Model model(at::kFloat);
    const ZeroOptions options = Options(1, 1, 10).compute(DType::kFloat16).loss_scale(QuickScale(2));
    auto zero = MustCreate(ZeroOptimizer::Create(session, model.parameters, AdamWOptions(), options));
    const auto step = [&] {
      const Batch batch = zero->Begin();
      EXPECT_TRUE(batch) << batch.status;
      (zero->Scale(model.Loss(batch.samples)) * std::numeric_limits<double>::infinity()).backward();
      return zero->Step().status();
    };
    EXPECT_TRUE(step().ok());  // 2 becomes 1
    const absl::Status end = step();
    EXPECT_TRUE(absl::IsFailedPrecondition(end)) << end;
    EXPECT_TRUE(absl::StrContains(end.message(), "step 2 overflowed at the smallest loss scale, 1,")) << end;
    EXPECT_EQ(zero->Begin().status, end);
  });
}

TEST(MixedPrecision, WhatDoesNotFitIsRefused) {
  SmallCluster cluster(1);
  cluster.RunRanks(1, [](Session& session, int, std::string*) {
    const auto refusal = [&](const NamedTensors& parameters, const ZeroOptions& options) {
      return ZeroOptimizer::Create(session, parameters, AdamWOptions(), options).status();
    };
    NamedTensors both, half;
    both.insert("a", at::ones({2}, at::kHalf).requires_grad_());
    both.insert("b", at::ones({2}, at::kBFloat16).requires_grad_());
    half.insert("a", at::ones({2}, at::kHalf).requires_grad_());
    NamedTensors single;
    single.insert("a", at::ones({2}).requires_grad_());
    LossScaleSpec bad = DynamicLossScale();
    bad.window = 0;
    const struct {
      absl::Status status;
      const char* part;
    } cases[] = {{refusal(both, ZeroOptions()), "parameter b is bf16 but parameter a is in fp16"},
                 {refusal(half, ZeroOptions().compute(DType::kFloat32)), "parameter a is fp16"},
                 {refusal(single, ZeroOptions().stochastic_rounding(true)), "compute in bf16 or fp16"},
                 {refusal(half, ZeroOptions().loss_scale(bad)), "loss_scale.window=0"}};
    for (const auto& c : cases) {
      EXPECT_TRUE(absl::IsInvalidArgument(c.status)) << c.status;
      EXPECT_TRUE(absl::StrContains(c.status.message(), c.part)) << c.status;
    }
  });
}

TEST(MixedPrecision, WrittenValuesAreRoundedAsUpdatesAre) {
  SmallCluster cluster(2);
  cluster.RunRanks(1, [](Session& session, int, std::string*) {
    at::Tensor a = at::ones({600}, at::kBFloat16).requires_grad_(),
               b = at::ones({5}, at::kBFloat16).requires_grad_();
    NamedTensors parameters;
    parameters.insert("a", a);
    parameters.insert("b", b);
    auto zero = MustCreate(
        ZeroOptimizer::Create(session, parameters, AdamWOptions(), ZeroOptions().stage(2).steps(2)));
    const at::Tensor values = Values({600}, 3);
    while (Batch batch = zero->Begin()) {
      (a.to(at::kFloat).sum() + b.to(at::kFloat).sum()).backward();
      if (batch.step == 1) {
        ASSERT_TRUE(zero->Write("a", values).ok());
      }
      ASSERT_TRUE(zero->Step().ok());
      if (batch.step > 1) continue;
      EXPECT_TRUE(at::equal(Master(session, "a"), values));
      EXPECT_TRUE(at::equal(a.detach(), values.to(at::kBFloat16)));
    }
  });
}

}  // namespace
}  // namespace sherd::tests

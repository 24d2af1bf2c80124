// ZeroOptimizer on real shard servers, against libtorch's own AdamW in one process.
#include "client/torch/zero_optimizer.h"

#include <ATen/ATen.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/test_root.h"
#include "tests/torch/parameter_zoo.h"
#include "tests/torch/small_cluster.h"

namespace sherd::tests {
namespace {

using torch::NamedTensors;
using torch::ZeroOptimizer;

constexpr int kSteps = 6;

// What the tests share; a failure ends the rank.
std::unique_ptr<ZeroOptimizer> MustCreate(absl::StatusOr<std::unique_ptr<ZeroOptimizer>> zero) {
  if (zero.ok()) return *std::move(zero);
  ADD_FAILURE() << zero.status();
  std::fflush(nullptr);
  ::_exit(1);
}

ZeroOptions ZooOptions(int stage, int accumulation) {
  return ZeroOptions()
      .stage(stage)
      .accumulation(accumulation)
      .global_batch(kZooBatch)
      .max_grad_norm(kZooClip)
      .steps(kSteps)
      .bucket_elements(256);  // `big` is larger
}

// Ends this rank's process as kill -9 does.
void Die() {
  std::fflush(nullptr);
  ::raise(SIGKILL);
}

// Trains the zoo to its end. `before_step` is called between backward and Step.
void TrainZoo(Session& session, const ZeroOptions& options, std::string* result,
              const std::function<void(const Batch&)>& before_step = nullptr, int backwards = 1) {
  ParameterZoo zoo;
  auto zero = MustCreate(ZeroOptimizer::Create(session, zoo.parameters, ZooGroups(), options));
  while (Batch batch = zero->Begin()) {
    zero->scalars(1)[kLr] = ZooLearningRate(batch.step);
    at::Tensor loss;
    if (!batch.samples.empty()) {
      // Several backward passes of one micro-batch: gradients that arrive again when their unit may have
      // left, as under re-entrant checkpointing.
      for (int i = 0; i < backwards; ++i) {
        loss = zoo.Loss(batch.step, batch.samples);
        (loss / static_cast<double>(backwards)).backward();
      }
    }
    if (before_step) before_step(batch);
    absl::StatusOr<StepInfo> info = zero->Step(loss);
    ASSERT_TRUE(info.ok()) << info.status();
    ASSERT_FALSE(info->aborted);
  }
  ASSERT_TRUE(zero->Begin().status.ok());
  *result = Flatten(zoo);
  ASSERT_TRUE(zero->Detach().ok());
}

void ExpectClose(const std::string& got, const std::string& want, double tolerance) {
  const std::vector<float> a = Floats(got), b = Floats(want);
  ASSERT_EQ(a.size(), b.size());
  int shown = 0;
  for (size_t i = 0; i < a.size() && shown < 5; ++i) {
    if (std::abs(a[i] - b[i]) <= tolerance * (std::abs(b[i]) + 1e-2)) continue;
    ADD_FAILURE() << "element " << i << ": " << a[i] << ", not " << b[i];
    ++shown;
  }
}

// The reference runs in a child too: this process must stay free of libtorch's threads.
std::string OneProcess() {
  static const std::string* const kValues = [] {
    int pipe_fds[2];
    if (::pipe(pipe_fds) != 0 || ::fork() == 0) {
      const std::string values = TrainInOneProcess(kSteps);
      if (::write(pipe_fds[1], values.data(), values.size()) < 0) ::_exit(1);
      ::_exit(0);
    }
    ::close(pipe_fds[1]);
    auto* values = new std::string();
    char buffer[4096];
    for (ssize_t n; (n = ::read(pipe_fds[0], buffer, sizeof buffer)) > 0;) values->append(buffer, n);
    ::close(pipe_fds[0]);
    ::wait(nullptr);
    return values;
  }();
  return *kValues;
}

// Stage, world size, servers, micro-batches.
class ZooTest : public ::testing::TestWithParam<std::tuple<int, int, int, int>> {};

TEST_P(ZooTest, EveryKindOfParameterTrainsAsInOneProcess) {
  const auto [stage, world, servers, accumulation] = GetParam();
  const std::string want = OneProcess();
  SmallCluster cluster(servers);
  const ZeroOptions options = ZooOptions(stage, accumulation);
  const std::vector<RankEnd> ends = cluster.RunRanks(
      world, [&](Session& session, int, std::string* result) { TrainZoo(session, options, result); });
  ExpectClose(ends[0].result, want, 2e-4);
  for (const RankEnd& end : ends) EXPECT_TRUE(end.result == ends[0].result);
}

INSTANTIATE_TEST_SUITE_P(All, ZooTest,
                         ::testing::Values(std::tuple(0, 1, 1, 1), std::tuple(0, 2, 2, 2),
                                           std::tuple(1, 2, 1, 3), std::tuple(1, 3, 2, 1),
                                           std::tuple(2, 1, 2, 2), std::tuple(2, 2, 2, 1),
                                           std::tuple(2, 2, 3, 3), std::tuple(2, 3, 1, 4)));

// More ranks than samples: some compute nothing in some micro-batches.
TEST(ZeroOptimizerTest, RanksWithoutSamplesTakePart) {
  const std::string want = OneProcess();
  SmallCluster cluster(1);
  const ZeroOptions options = ZooOptions(2, 2);
  const std::vector<RankEnd> ends = cluster.RunRanks(
      4, [&](Session& session, int, std::string* result) { TrainZoo(session, options, result); });
  for (const RankEnd& end : ends) ExpectClose(end.result, want, 2e-4);
}

class RestartTest : public ::testing::TestWithParam<std::tuple<int, int>> {};

// A rank dies between backward and Step: its replacement computes the step again and does not deliver twice.
TEST_P(RestartTest, ReplacementGoesOnBitForBit) {
  const auto [stage, backwards] = GetParam();
  std::string undisturbed;
  for (const bool kill : {false, true}) {
    SmallCluster cluster(2);
    const ZeroOptions options = ZooOptions(stage, 2);
    const std::vector<RankEnd> ends =
        cluster.RunRanks(2, [&](Session& session, int life, std::string* result) {
          const auto die = [&](const Batch& batch) {
            if (!kill || life > 0) return;
            if (session.rank() == 0 && batch.step == 3 && batch.micro == 1) Die();
            if (session.rank() == 1 && batch.step == 5 && batch.micro == 0) Die();
          };
          TrainZoo(session, options, result, die, backwards);
        });
    ExpectClose(ends[0].result, OneProcess(), 2e-4);
    EXPECT_TRUE(ends[0].result == ends[1].result);
    if (kill) {
      EXPECT_TRUE(ends[0].result == undisturbed);
    }
    undisturbed = ends[0].result;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RestartTest,
                         ::testing::Combine(::testing::Values(1, 2), ::testing::Values(1, 2)));

TEST(ZeroOptimizerTest, RunningStatisticsComeBackAfterARestart) {
  SmallCluster cluster(2);
  const std::vector<RankEnd> ends = cluster.RunRanks(2, [](Session& session, int life, std::string* result) {
    at::Tensor weight = at::ones({3}).requires_grad_();
    at::Tensor mean = at::zeros({2, 2}), count = at::zeros({}, at::kLong);
    NamedTensors parameters, buffers;
    parameters.insert("weight", weight);
    buffers.insert("running_mean", mean);
    buffers.insert("num_batches_tracked", count);
    auto zero = MustCreate(ZeroOptimizer::Create(session, parameters, SgdOptions(0.1),
                                                 ZeroOptions().stage(1).steps(4), buffers));
    while (Batch batch = zero->Begin()) {
      if (life == 1 && session.rank() == 0) {  // as committed with step 2
        EXPECT_EQ(count.item<int64_t>(), static_cast<int64_t>(batch.step) - 1);
        EXPECT_EQ(zero->blob(), absl::StrCat("after ", batch.step - 1));
      }
      mean.add_(0.5 * static_cast<double>(batch.step));
      count.add_(1);
      weight.sum().backward();
      if (life == 0 && session.rank() == 0 && batch.step == 3) Die();
      zero->SetBlob(absl::StrCat("after ", batch.step));
      ASSERT_TRUE(zero->Step().ok());
    }
    if (session.rank() == 0) {
      EXPECT_EQ(count.item<int64_t>(), 4);
      EXPECT_EQ(mean[1][1].item<float>(), 5.0f);
    }
    *result = absl::StrCat(weight[0].item<float>());
  });
  EXPECT_TRUE(ends[0].result == ends[1].result);
}

// Step 2 is skipped, rank 1 dies in step 4: rates go by updates that were made, not by what a process
// counted.
TEST(ZeroOptimizerTest, ASchedulePassesOverSkippedStepsAndGoesOnAfterARestart) {
  SmallCluster cluster(2);
  const std::vector<RankEnd> ends = cluster.RunRanks(2, [](Session& session, int life, std::string* result) {
    at::Tensor weight = at::ones({3}).requires_grad_();
    NamedTensors parameters;
    parameters.insert("weight", weight);
    auto zero = MustCreate(
        ZeroOptimizer::Create(session, parameters, SgdOptions(1), ZeroOptions().stage(1).steps(6)));
    zero->SetSchedule(*Schedule::Create({"linear", {{"total_num_steps", 8}}, ""}));
    while (Batch batch = zero->Begin()) {
      const bool bad = batch.step == 2 && session.rank() == 0;
      (weight.sum() * (bad ? std::numeric_limits<double>::infinity() : 1.0)).backward();
      if (life == 0 && session.rank() == 1 && batch.step == 4) Die();
      const absl::StatusOr<StepInfo> info = zero->Step();
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->skipped, batch.step == 2);
      const uint64_t updates = batch.step <= 2 ? batch.step - 1 : batch.step - 2;
      EXPECT_EQ(info->lr, 1 - static_cast<double>(updates) / 8) << "step " << batch.step;
    }
    *result = absl::StrCat(weight[0].item<float>());
  });
  // 1 less the rates of five updates.
  for (const RankEnd& end : ends) EXPECT_EQ(end.result, "-2.75");
}

// Rates and betas of each update, written out, against Adam's formulas in double.
TEST(ZeroOptimizerTest, ACycleMovesBetasWithTheRate) {
  constexpr double kRates[] = {0.1, 0.55, 1, 0.55, 0.1, 0.05}, kBetas[] = {0.8, 0.85, 0.8, 0.85, 0.9, 0.9};
  double want = 1, m = 0, v = 0;
  for (int n = 0; n < 6; ++n) {
    const double g = n % 3 + 1, b1 = kBetas[n], b2 = 0.99;
    m = b1 * m + (1 - b1) * g, v = b2 * v + (1 - b2) * g * g;
    want -= kRates[n] * (m / (1 - std::pow(b1, n + 1))) / (std::sqrt(v / (1 - std::pow(b2, n + 1))) + 1e-8);
  }
  SmallCluster cluster(2);
  const std::vector<RankEnd> ends = cluster.RunRanks(2, [&](Session& session, int life, std::string* result) {
    at::Tensor weight = at::ones({3}).requires_grad_();
    NamedTensors parameters;
    parameters.insert("weight", weight);
    auto zero = MustCreate(
        ZeroOptimizer::Create(session, parameters, AdamOptions(), ZeroOptions().stage(2).steps(6)));
    zero->SetSchedule(*Schedule::Create({"OneCycle",
                                         {{"cycle_min_lr", 0.1},
                                          {"cycle_max_lr", 1},
                                          {"cycle_first_step_size", 2},
                                          {"decay_step_size", 1},
                                          {"decay_lr_rate", 1}},
                                         ""}));
    while (Batch batch = zero->Begin()) {
      (weight.sum() * static_cast<double>((batch.step - 1) % 3 + 1)).backward();
      if (life == 0 && session.rank() == 1 && batch.step == 4) Die();
      const absl::StatusOr<StepInfo> info = zero->Step();
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_NEAR(info->lr, kRates[batch.step - 1], 1e-15) << "step " << batch.step;
    }
    *result = absl::StrCat(weight[0].item<float>());
  });
  for (const RankEnd& end : ends) EXPECT_NEAR(std::stod(end.result), want, 1e-5);
}

TEST(ZeroOptimizerTest, WrittenValuesAppearOnEveryRankWithTheStep) {
  SmallCluster cluster(2);
  cluster.RunRanks(2, [](Session& session, int, std::string*) {
    at::Tensor a = at::ones({300, 3}).requires_grad_(), b = at::ones({5}).requires_grad_();
    NamedTensors parameters;
    parameters.insert("a", a);
    parameters.insert("b", b);
    auto zero = MustCreate(
        ZeroOptimizer::Create(session, parameters, AdamWOptions(), ZeroOptions().stage(2).steps(3)));
    while (Batch batch = zero->Begin()) {
      (a.sum() + b.sum()).backward();
      if (batch.step == 2 && session.rank() == 1) {
        EXPECT_TRUE(absl::IsNotFound(zero->Write("c", at::ones({5}))));
        const absl::Status shape = zero->Write("a", at::ones({3, 300}));
        EXPECT_TRUE(absl::IsInvalidArgument(shape));
        EXPECT_TRUE(absl::StrContains(shape.message(), "[300, 3]")) << shape;
        ASSERT_TRUE(zero->Write("a", at::full({300, 3}, 7.0)).ok());
      }
      ASSERT_TRUE(zero->Step().ok());
      EXPECT_EQ(a[299][2].item<float>() == 7.0f, batch.step == 2);
      EXPECT_NE(b[0].item<float>(), 7.0f);
    }
  });
}

TEST(ZeroOptimizerTest, RanksThatDisagreeAreToldTheFieldAndMayRepeatTheStep) {
  SmallCluster cluster(2);
  cluster.RunRanks(2, [](Session& session, int, std::string*) {
    at::Tensor a = at::ones({5}).requires_grad_();
    NamedTensors parameters;
    parameters.insert("a", a);
    auto zero =
        MustCreate(ZeroOptimizer::Create(session, parameters, AdamWOptions().lr(0.001 * (session.rank() + 1)),
                                         ZeroOptions().stage(1).steps(2)));
    ASSERT_TRUE(zero->Begin());
    a.sum().backward();
    const absl::Status told = zero->Step().status();
    EXPECT_TRUE(absl::IsInvalidArgument(told)) << told;
    for (const char* part : {"lr", "0.001", "0.002"})
      EXPECT_TRUE(absl::StrContains(told.message(), part)) << told;
    EXPECT_EQ(a[0].item<float>(), 1.0f);
    zero->set_lr(0.004);
    for (uint64_t step : {1, 2}) {
      Batch batch = zero->Begin();
      ASSERT_TRUE(batch) << batch.status;
      EXPECT_EQ(batch.step, step);
      a.sum().backward();
      ASSERT_TRUE(zero->Step().ok());
    }
    EXPECT_FALSE(zero->Begin());
  });
}

TEST(ZeroOptimizerTest, AStrayWriteNamesTheParameter) {
  SmallCluster cluster(1);
  const std::vector<RankEnd> ends = cluster.RunRanks(1, [](Session& session, int, std::string*) {
    at::NoGradGuard no_grad;
    ParameterZoo zoo;
    auto zero = MustCreate(ZeroOptimizer::Create(session, zoo.parameters, ZooGroups(), ZooOptions(1, 1)));
    zoo.sometimes.mul_(2);
  });
  EXPECT_EQ(ends[0].exit_code, 128 + SIGSEGV);
  EXPECT_TRUE(absl::StrContains(ends[0].errors, "parameter sometimes,")) << ends[0].errors;
}

// Gradients of half a step are with the servers, or in the trainer: what is saved is the step before it.
class SaveTest : public ::testing::TestWithParam<int> {};

TEST_P(SaveTest, InTheMiddleOfAnAccumulationMeansTheLastWholeStep) {
  const runtime::TestRoot folder;
  SaveOptions where;
  where.directory = folder.path() + "/ck";
  SmallCluster cluster(2);
  const ZeroOptions options = ZooOptions(GetParam(), 3);
  const std::vector<RankEnd> ends = cluster.RunRanks(2, [&](Session& session, int, std::string* result) {
    ParameterZoo zoo;
    auto zero = MustCreate(ZeroOptimizer::Create(session, zoo.parameters, ZooGroups(), options));
    while (Batch batch = zero->Begin()) {
      zero->scalars(1)[kLr] = ZooLearningRate(batch.step);
      zoo.Loss(batch.step, batch.samples).backward();
      if (session.rank() == 0 && batch.step == 4 && batch.micro == 1) {
        const absl::StatusOr<SavedAs> saved = zero->Save(where)->Wait();
        ASSERT_TRUE(saved.ok()) << saved.status();
        EXPECT_EQ(saved->step, 3u);
        EXPECT_EQ(saved->tag, "step-3");
      }
      const absl::StatusOr<StepInfo> info = zero->Step();
      ASSERT_TRUE(info.ok()) << info.status();
    }
    *result = Flatten(zoo);
  });
  ExpectClose(ends[0].result, OneProcess(), 2e-4);
}

INSTANTIATE_TEST_SUITE_P(Stages, SaveTest, ::testing::Values(1, 2));

TEST(ZeroOptimizerTest, AParameterThatLeftSharedMemoryIsNamed) {
  SmallCluster cluster(1);
  cluster.RunRanks(1, [](Session& session, int, std::string*) {
    ParameterZoo zoo;
    auto zero = MustCreate(ZeroOptimizer::Create(session, zoo.parameters, ZooGroups(), ZooOptions(1, 1)));
    Batch batch = zero->Begin();
    zoo.Loss(batch.step, batch.samples).backward();
    zoo.big.set_data(zoo.big.detach().clone());
    const absl::Status told = zero->Step().status();
    EXPECT_TRUE(absl::IsFailedPrecondition(told)) << told;
    EXPECT_TRUE(absl::StrContains(told.message(), "parameter big ")) << told;
  });
}

TEST(ZeroOptimizerTest, WhatCanNotBeTrainedIsRefused) {
  SmallCluster cluster(1);
  cluster.RunRanks(1, [](Session& session, int, std::string*) {
    const auto refusal = [&](const NamedTensors& parameters, const ZeroOptions& options) {
      return ZeroOptimizer::Create(session, parameters, AdamWOptions(), options).status();
    };
    NamedTensors doubles, good;
    doubles.insert("d", at::ones({2}, at::kDouble));
    good.insert("g", at::ones({2}).requires_grad_());
    for (const absl::Status& s : {refusal(doubles, ZeroOptions()), refusal(good, ZeroOptions().stage(4)),
                                  refusal(good, ZeroOptions().accumulation(0))}) {
      EXPECT_TRUE(absl::IsInvalidArgument(s)) << s;
    }
    EXPECT_TRUE(absl::StrContains(refusal(doubles, ZeroOptions()).message(), "parameter d is Double"));
    auto zero = MustCreate(ZeroOptimizer::Create(session, good, AdamWOptions(), ZeroOptions().steps(1)));
    ASSERT_TRUE(zero->Begin());
    ASSERT_TRUE(zero->Step().ok());  // without any gradient: nothing is updated
    EXPECT_EQ(good["g"][0].item<float>(), 1.0f);
  });
}

}  // namespace
}  // namespace sherd::tests

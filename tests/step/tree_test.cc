// A job whose gradients are added up in groups, as several hosts do it, with real engines and shared memory
// on one host, against an unsharded model with the same reduction tree: bit for bit, whoever stops when.
#include <cstdio>
#include <random>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

constexpr int kSteps = 6;

JobSpec TreeSpec(std::vector<int32_t> groups, int stage, int parts, DType dtype, DType wire,
                 OptimizerKind optimizer = OptimizerKind::kAdamW) {
  int world = 0;
  for (const int32_t g : groups) world += g;
  JobSpec spec = StepSpec(world, stage, parts, optimizer);
  spec.compute = spec.staging = dtype;
  spec.reduction = MakeReductionTree(std::move(groups), wire);
  if (dtype != DType::kFloat32) spec.loss_scale = DynamicLossScale(), spec.loss_scale.initial = 1024;
  return spec;
}

std::vector<std::thread> StartTrainers(InProcessJob& job, int steps, const StepPlan& plan) {
  std::vector<std::thread> trainers;
  for (int r = 0; r < job.memory().spec().world_size; ++r) {
    trainers.emplace_back([&job, r, steps, plan] { Train(job, r, steps, plan, nullptr); });
  }
  return trainers;
}

// Groups, stage, servers, parts, precision, wire.
using Case = std::tuple<std::vector<int32_t>, int, int, int, DType, DType>;
class TreeTest : public ::testing::TestWithParam<Case> {};

TEST_P(TreeTest, EqualsOneProcessWithTheSameTree) {
  const auto [groups, stage, servers, parts, dtype, wire] = GetParam();
  if (stage < 2 && parts > 1) GTEST_SKIP() << "stages 0 and 1 accumulate in the trainer";
  const JobSpec spec = TreeSpec(groups, stage, parts, dtype, wire);
  ASSERT_TRUE(Validate(spec).ok()) << Validate(spec);
  InProcessJob job(spec, servers);
  Initialise(job);
  const StepPlan plan{parts, 0.5, /*absent=*/4, /*overflows=*/{3}};
  for (std::thread& t : StartTrainers(job, kSteps, plan)) t.join();
  StepOracle oracle(spec);
  for (int s = 1; s <= kSteps; ++s) oracle.Step(s, plan);
  ExpectEqual(job, oracle);
}

INSTANTIATE_TEST_SUITE_P(
    All, TreeTest,
    ::testing::Combine(::testing::Values(std::vector<int32_t>{1, 1}, std::vector<int32_t>{2, 1},
                                         std::vector<int32_t>{2, 2}, std::vector<int32_t>{1, 2, 1}),
                       ::testing::Values(0, 1, 2), ::testing::Values(1, 3), ::testing::Values(1, 2),
                       ::testing::Values(DType::kFloat32, DType::kBFloat16),
                       ::testing::Values(DType::kFloat32, DType::kBFloat16, DType::kFloat16)));

// Rounding partial sums is not the same sum: what the tests above compare is not trivially equal.
TEST(TreeTest, AnotherTreeGivesOtherBits) {
  StepOracle one(TreeSpec({4}, 1, 1, DType::kFloat32, DType::kFloat32));
  StepOracle two(TreeSpec({2, 2}, 1, 1, DType::kFloat32, DType::kFloat32));
  StepOracle rounded(TreeSpec({2, 2}, 1, 1, DType::kFloat32, DType::kBFloat16));
  for (StepOracle* o : {&one, &two, &rounded}) o->Step(1, {});
  EXPECT_NE(one.p(), two.p());
  EXPECT_NE(two.p(), rounded.p());
}

class TreeOwnersStopTest : public ::testing::TestWithParam<OptimizerKind> {};

TEST_P(TreeOwnersStopTest, AndResizeAtAnyTime) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  const JobSpec spec = TreeSpec({2, 1}, 2, 2, DType::kBFloat16, DType::kBFloat16, GetParam());
  InProcessJob job(spec, 2);
  Initialise(job);
  constexpr int kMany = 120;
  const StepPlan plan{2, 0.5};
  std::vector<std::thread> trainers = StartTrainers(job, kMany, plan);
  const int sizes[] = {3, 1, 2};
  for (int i = 0; i < 3; ++i) {
    // Wait for the steps themselves, not for time.
    const uint64_t until = (i + 1) * 25 + rng() % 10;
    while (job.memory().DoneByAll()->step.value() < until)
      job.RestartOwner(static_cast<int>(rng() % job.servers()));
    job.Resize(sizes[i]);
  }
  for (std::thread& t : trainers) t.join();
  StepOracle oracle(spec);
  for (int s = 1; s <= kMany; ++s) oracle.Step(s, plan);
  ExpectEqual(job, oracle);
}

INSTANTIATE_TEST_SUITE_P(All, TreeOwnersStopTest,
                         ::testing::Values(OptimizerKind::kAdamW, OptimizerKind::kLamb,
                                           OptimizerKind::kMuon));

}  // namespace
}  // namespace sherd::tests

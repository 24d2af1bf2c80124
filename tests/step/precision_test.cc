// The step protocol in 16 bits, with real engines and shared memory, against an unsharded model that rounds
// where they do: bit for bit, masters, moments and compute parameters. Overflows planted on one rank.
#include <cstdio>
#include <random>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

LossScaleSpec QuickScale() {
  LossScaleSpec spec = DynamicLossScale();
  spec.initial = 1024, spec.window = 2, spec.hysteresis = 1;
  return spec;
}

// Compute, staging, stage, world, servers, parts.
using Case = std::tuple<DType, DType, int, int, int, int>;
class PrecisionTest : public ::testing::TestWithParam<Case> {};

TEST_P(PrecisionTest, EqualsOneProcessBitForBit) {
  const auto [compute, staging, stage, world, servers, parts] = GetParam();
  if (stage < 2 && parts > 1) GTEST_SKIP() << "stages 0 and 1 accumulate in the trainer";
  JobSpec spec = StepSpec(world, stage, parts);
  spec.compute = compute;
  spec.staging = staging;
  spec.loss_scale = QuickScale();
  spec.stochastic_rounding = parts == 1;
  spec.rounding_seed = 17;
  if (compute == DType::kFloat32) spec.stochastic_rounding = false;
  ASSERT_TRUE(Validate(spec).ok()) << Validate(spec);
  InProcessJob job(spec, servers, /*workers=*/servers == 2 ? 2 : 1);
  TrainAndCompare(job, 8, {parts, 0.5, /*absent=*/4, /*overflows=*/{3, 5}});
}

INSTANTIATE_TEST_SUITE_P(All, PrecisionTest,
                         ::testing::Combine(::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Values(0, 1, 2), ::testing::Values(1, 3),
                                            ::testing::Values(1, 2, 5), ::testing::Values(1, 3)));
INSTANTIATE_TEST_SUITE_P(Mixed, PrecisionTest,
                         ::testing::Values(Case(DType::kFloat32, DType::kBFloat16, 2, 2, 2, 2),
                                           Case(DType::kBFloat16, DType::kFloat32, 1, 2, 2, 1)));

// The scale that each step used, by hand: an infinity halves it once, two clean steps after that double it.
TEST(PrecisionTest, TheScaleMovesAtTheExactStep) {
  JobSpec spec = StepSpec(2, 2, 1);
  spec.compute = spec.staging = DType::kFloat16;
  spec.loss_scale = QuickScale();
  InProcessJob job(spec, 2);
  Initialise(job);
  std::vector<Verdict> verdicts;
  const StepPlan plan{1, 0, -1, {2}};
  std::thread other([&] { Train(job, 1, 9, plan, nullptr); });
  Train(job, 0, 9, plan, &verdicts);
  other.join();
  std::vector<double> next;
  for (const Verdict& v : verdicts) next.push_back(v.loss_scale.scale);
  EXPECT_EQ(next, (std::vector<double>{1024, 512, 512, 512, 1024, 1024, 2048, 2048, 4096}));
}

TEST(PrecisionTest, TheFloorEndsTrainingWithAReason) {
  JobSpec spec = StepSpec(2, 1, 1);
  spec.compute = spec.staging = DType::kFloat16;
  spec.loss_scale = QuickScale();
  spec.loss_scale.initial = 2;
  InProcessJob job(spec, 2);
  Initialise(job);
  std::vector<Verdict> verdicts;
  const StepPlan plan{1, 0, -1, {1, 2, 3}};
  std::thread other([&] { Train(job, 1, 2, plan, nullptr); });
  Train(job, 0, 2, plan, &verdicts);
  other.join();
  EXPECT_EQ(verdicts[0].loss_scale.floor, 0);
  EXPECT_EQ(verdicts[1].loss_scale.floor, 1);
  EXPECT_NE(verdicts[1].reason.find("smallest loss scale, 1,"), std::string::npos) << verdicts[1].reason;
  EXPECT_EQ(job.memory().CurrentLossScale().floor, 1);
}

TEST(PrecisionTest, HalfTheBytes) {
  const JobSpec fp32 = StepSpec(1, 1, 1);
  JobSpec bf16 = fp32;
  bf16.compute = bf16.staging = DType::kBFloat16;
  InProcessJob job(bf16, 1);
  TrainAndCompare(job, 2, {});
  const JobSizes narrow(bf16), wide(fp32);
  EXPECT_EQ(2 * narrow.staging_bytes(), wide.staging_bytes());
  EXPECT_EQ(2 * narrow.compute_bytes(), wide.plane_bytes(0));
  EXPECT_EQ(job.memory().Staging(Rank(0), 0)->size(), narrow.staging_bytes());
}

// Owners stop and come back, and their number changes; trainers die between any two acts. Neither the noise
// of stochastic rounding nor the loss scale depends on it.
TEST(PrecisionTest, NothingDependsOnWhoDiesWhen) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    JobSpec spec = StepSpec(2, 2, 2);
    spec.compute = spec.staging = dtype;
    spec.loss_scale = QuickScale();
    spec.stochastic_rounding = true;
    spec.rounding_seed = seed;
    InProcessJob job(spec, 2);
    Initialise(job);
    constexpr int kSteps = 60;
    StepPlan plan{2, 0.5, -1, {}};
    // Often enough that the scale stays small.
    for (int s = 4; s <= kSteps; s += 4) plan.overflows.insert(s);
    std::vector<std::thread> trainers;
    for (int r = 0; r < 2; ++r) {
      trainers.emplace_back([&, r] {
        std::mt19937 rng(seed + r);
        for (int deaths = 0; deaths < 40; ++deaths) {
          int acts = static_cast<int>(rng() % 60);
          Train(job, r, kSteps, plan, nullptr, [&] { return acts-- == 0; });
        }
        Train(job, r, kSteps, plan, nullptr);
      });
    }
    std::mt19937 rng(seed + 7);
    const int sizes[] = {3, 1, 2};
    for (int i = 0; i < 3; ++i) {
      while (job.memory().DoneByAll()->step.value() < static_cast<uint64_t>(i + 1) * 15)
        job.RestartOwner(static_cast<int>(rng() % job.servers()));
      job.Resize(sizes[i]);
    }
    for (std::thread& t : trainers) t.join();
    StepOracle oracle(spec);
    for (int s = 1; s <= kSteps; ++s) oracle.Step(s, plan);
    ExpectEqual(job, oracle);
    EXPECT_EQ(job.memory().CurrentLossScale(), oracle.loss_scale());
  }
}

}  // namespace
}  // namespace sherd::tests

// The step protocol with real engines and shared memory, against an unsharded model computed here with the
// scalar kernels: bit for bit.
#include <random>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

class StepTest : public ::testing::TestWithParam<std::tuple<int, int, int, int, OptimizerKind>> {};

TEST_P(StepTest, EqualsOneProcessBitForBit) {
  const auto [stage, world, servers, parts, optimizer] = GetParam();
  if (stage < 2 && parts > 1) GTEST_SKIP() << "stages 0 and 1 accumulate in the trainer";
  const JobSpec spec = StepSpec(world, stage, parts, optimizer);
  InProcessJob job(spec, servers, /*workers=*/servers == 2 ? 2 : 1);
  Initialise(job);
  StepOracle oracle(spec);
  constexpr int kSteps = 6;
  std::vector<Verdict> verdicts;
  std::vector<std::thread> trainers;
  const StepPlan plan{parts, 0.5, /*absent=*/4, {}};
  for (int r = 0; r < world; ++r) {
    trainers.emplace_back([&, r] { Train(job, r, kSteps, plan, r == 0 ? &verdicts : nullptr); });
  }
  for (std::thread& t : trainers) t.join();
  for (int s = 1; s <= kSteps; ++s) {
    oracle.Step(s, plan);
    ASSERT_EQ(verdicts[s - 1].grad_norm, oracle.norm()) << s;
  }
  ExpectEqual(job, oracle);
}

INSTANTIATE_TEST_SUITE_P(All, StepTest,
                         ::testing::Combine(::testing::Values(0, 1, 2), ::testing::Values(1, 2, 3),
                                            ::testing::Values(1, 2, 5), ::testing::Values(1, 3),
                                            ::testing::Values(OptimizerKind::kAdamW, OptimizerKind::kLamb,
                                                              OptimizerKind::kMuon)));

class OwnersStopTest : public ::testing::TestWithParam<OptimizerKind> {};

TEST_P(OwnersStopTest, AndResizeAtAnyTime) {
  const JobSpec spec = StepSpec(2, 2, 2, GetParam());
  InProcessJob job(spec, 2);
  Initialise(job);
  constexpr int kSteps = 400;
  std::vector<std::thread> trainers;
  for (int r = 0; r < 2; ++r) trainers.emplace_back([&, r] { Train(job, r, kSteps, {2, 0.5}, nullptr); });
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  const int sizes[] = {3, 1, 4, 2};
  for (int i = 0; i < 4; ++i) {
    // Wait for the steps themselves, not for time.
    const uint64_t until = (i + 1) * 60 + rng() % 20;
    while (job.memory().DoneByAll()->step.value() < until)
      job.RestartOwner(static_cast<int>(rng() % job.servers()));
    job.Resize(sizes[i]);
  }
  for (std::thread& t : trainers) t.join();
  StepOracle oracle(spec);
  for (int s = 1; s <= kSteps; ++s) oracle.Step(s, {2, 0.5});
  ExpectEqual(job, oracle);
  EXPECT_EQ(job.memory().control().Newest()->servers, 2);
}

INSTANTIATE_TEST_SUITE_P(All, OwnersStopTest,
                         ::testing::Values(OptimizerKind::kAdamW, OptimizerKind::kLamb,
                                           OptimizerKind::kMuon));

// Each rank has nothing for one unit and a late part for the other: neither may wait for the other's first
// part.
TEST(StepTest, LatePartsOfDifferentUnitsDoNotWaitForEachOther) {
  const JobSpec spec = StepSpec(2, 2, 1);
  InProcessJob job(spec, 2);
  Initialise(job);
  std::vector<std::thread> trainers;
  for (int r = 0; r < 2; ++r) {
    trainers.emplace_back([&, r] {
      std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
      client::StepWriter::Options options;
      options.timeout = absl::Seconds(20);
      client::StepWriter writer(memory.get(), Rank(r), options);
      ASSERT_TRUE(writer.Resume().ok());
      for (int step = 0; step < 5; ++step) {
        writer.BeginPart(1.0f);
        for (int part = 0; part < 2; ++part) {
          if (part == 1) writer.BeginLatePart(1.0f);
          auto to = writer.Stage(r);
          ASSERT_TRUE(to.ok()) << to.status();
          const BlockRange blocks = spec.layout.units()[r].blocks;
          std::fill_n(static_cast<float*>(*to), blocks.size() * kBlockElements, 0.0f);
          writer.Deliver(r);
          if (part == 0) {
            ASSERT_TRUE(writer.EndPart().ok());
          }
        }
        client::StepWriter::Record record;
        record.samples = 1, record.weight = 1;
        record.groups = {StepScalars()};
        record.has_grad.resize(1);
        ASSERT_TRUE(writer.Finish(record, "").ok());
      }
    });
  }
  for (std::thread& t : trainers) t.join();
  EXPECT_EQ(job.memory().DoneByAll()->step, Step(5));
}

TEST(StepTest, MoreUnitsMayBeOpenThanTheRingHasRoomFor) {
  const JobSpec spec = StepSpec(1, 2, 1);
  InProcessJob job(spec, 1);
  Initialise(job);
  std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
  client::StepWriter::Options options;
  options.timeout = absl::Seconds(20);
  options.ring_bytes = 1;  // room for the largest unit
  client::StepWriter writer(memory.get(), Rank(0), options);
  ASSERT_TRUE(writer.Resume().ok());
  for (int step = 0; step < 3; ++step) {
    writer.BeginPart(1.0f);
    for (int u = 0; u < 3; ++u) {
      auto to = writer.Stage(u);
      ASSERT_TRUE(to.ok()) << to.status();
      std::fill_n(static_cast<float*>(*to), spec.layout.units()[u].blocks.size() * kBlockElements, 0.0f);
    }
    for (int u = 0; u < 3; ++u) writer.Deliver(u);
    ASSERT_TRUE(writer.EndPart().ok());
    client::StepWriter::Record record;
    record.samples = 1, record.weight = 1;
    record.groups = {StepScalars()};
    record.has_grad.resize(1);
    ASSERT_TRUE(writer.Finish(record, "").ok());
  }
  EXPECT_GT(writer.ring_growths(), 0);
  EXPECT_EQ(job.memory().DoneByAll()->step, Step(3));
}

TEST(StepTest, TrainersMayDieBetweenAnyTwoActs) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  for (const auto& [stage, parts] : {std::make_pair(1, 1), std::make_pair(2, 1), std::make_pair(2, 3)}) {
    const JobSpec spec = StepSpec(2, stage, parts);
    InProcessJob job(spec, 2);
    Initialise(job);
    constexpr int kSteps = 30;
    std::vector<std::thread> trainers;
    for (int r = 0; r < 2; ++r) {
      trainers.emplace_back([&, r, stage = stage, parts = parts] {
        std::mt19937 rng(seed + 10 * stage + r);
        for (int deaths = 0; deaths < 25; ++deaths) {
          int acts = static_cast<int>(rng() % 60);
          Train(job, r, kSteps, {parts, 0.5}, nullptr, [&] { return acts-- == 0; });
        }
        Train(job, r, kSteps, {parts, 0.5}, nullptr);
      });
    }
    for (std::thread& t : trainers) t.join();
    StepOracle oracle(spec);
    for (int s = 1; s <= kSteps; ++s) oracle.Step(s, {parts, 0.5});
    SCOPED_TRACE(absl::StrCat("stage ", stage, " parts ", parts));
    ExpectEqual(job, oracle);
  }
}

}  // namespace
}  // namespace sherd::tests

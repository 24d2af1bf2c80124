// Trainers that come and go while a job runs: real engines over shared memory, trainers as threads, the test
// in the coordinator's place. Whatever happens, the result is that of one process that did each step's
// arithmetic for as many ranks as the step had, bit for bit.
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

class WorldTest : public ::testing::TestWithParam<int> {
 protected:
  WorldTest() : WorldTest(StepSpec(2, GetParam(), GetParam() == 2 ? 2 : 1)) {}
  explicit WorldTest(const JobSpec& spec)
      : spec_(spec),
        plan_{spec_.parts, /*max_norm=*/0.5, /*absent=*/-1, {}, spec.virtual_ranks},
        job_(spec_, 2) {
    Initialise(job_);
    job_.AddRanks(2);
  }

  // Starts a trainer of each rank below `world` that has none.
  void StartTrainers(int world) {
    for (int r = 0; r < world; ++r) {
      if (threads_.count(r) != 0) continue;
      threads_[r] = std::thread([this, r] {
        // While its rank dies, another process takes its place.
        while (Lives(r)) {
        }
      });
    }
  }
  // One process of rank r; true if it died and is to be replaced.
  bool Lives(int r) {
    bool dead = false;
    Train(job_, r, kSteps, plan_, nullptr, [&] {
      job_.Await([&] { return Done() < allowed_; });
      return dead = dead || Dies(r);
    });
    return dead && !stays_dead_;
  }
  bool Dies(int r) {
    if (dying_ != r) return false;
    int left = acts_left_.load();
    while (left > 0 && !acts_left_.compare_exchange_weak(left, left - 1)) {
    }
    return left == 1;
  }
  void KillAfter(int rank, int acts) {
    dying_ = rank;
    acts_left_ = acts;
  }

  uint64_t Done() { return job_.memory().DoneByAll()->step.value(); }
  // A few steps more: trainers that ran to their end while the test had no processor would leave nothing to
  // change, and a resize that waits for their next step.
  void Allow(uint64_t steps = 25) {
    allowed_ = Done() + steps;
    job_.memory().control().bell.Ring();
  }
  void AwaitStep(uint64_t step) {
    Allow();
    job_.Await([&] { return Done() >= step; });
  }
  void AwaitReady(int from, int to) {
    job_.Await([&] {
      for (int r = from; r < to; ++r) {
        if (job_.memory().trainer(Rank(r)).ready.load() != 1) return false;
      }
      return true;
    });
  }
  // As the coordinator does it: new ranks first, then the assignment; then those that go have ended.
  void Resize(int servers, int world) {
    Allow();
    const int before = job_.memory().control().Newest()->world_size;
    job_.AddRanks(world);
    for (int r = before; r < world; ++r) job_.memory().trainer(Rank(r)).ready.store(0);
    StartTrainers(world);
    AwaitReady(before, world);
    job_.Resize(servers, world);
    AwaitWorld(world);
    for (int r = world; r < before; ++r) {
      threads_[r].join();
      threads_.erase(r);
    }
  }
  void AwaitWorld(int world) {
    Allow();
    job_.Await([&] {
      const auto a = job_.memory().control().Newest();
      return a->world_size == world && job_.memory().DoneByAll()->step.Next() >= a->from_step;
    });
  }
  void ExpectAsPlanned() {
    Allow(kSteps);
    for (auto& [rank, thread] : threads_) thread.join();
    StepOracle oracle(spec_);
    for (uint64_t s = 1; s <= kSteps; ++s) {
      oracle.set_world_size(job_.memory().control().AssignmentFor(Step(s))->world_size);
      oracle.Step(s, plan_);
    }
    ExpectEqual(job_, oracle);
  }

  static constexpr uint64_t kSteps = 400;
  const JobSpec spec_;
  const StepPlan plan_;
  InProcessJob job_;
  std::map<int, std::thread> threads_;
  std::atomic<int> dying_{-1}, acts_left_{0};
  std::atomic<uint64_t> allowed_{25};
  std::atomic<bool> stays_dead_{false};
};

TEST_P(WorldTest, TwoThreeOneFourTwoWhileItTrains) {
  StartTrainers(2);
  AwaitStep(3);
  Resize(2, 3);
  AwaitStep(Done() + 3);
  Resize(1, 1);
  AwaitStep(Done() + 3);
  Resize(3, 4);
  AwaitStep(Done() + 3);
  Resize(3, 2);
  ExpectAsPlanned();
}

TEST_P(WorldTest, TrainersAndOwnersThatDieMeanwhileChangeNothing) {
  std::mt19937_64 random(std::random_device{}());
  const uint64_t seed = random();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  random.seed(seed);
  StartTrainers(2);
  AwaitStep(2);
  int world = 2;
  for (const int next : {3, 1, 4, 2}) {
    KillAfter(static_cast<int>(random() % std::min(world, next)), 1 + static_cast<int>(random() % 40));
    Resize(2, next);
    job_.RestartOwner(static_cast<int>(random() % 2));
    world = next;
  }
  ExpectAsPlanned();
}

// A rank dies in the middle of a step and nobody comes to replace it.
TEST_P(WorldTest, AStepThatCannotBeFinishedIsGivenUpAndComputedByTheOthers) {
  for (const int acts : {1, 5, 12}) {
    StartTrainers(2);
    AwaitStep(Done() + 1);
    Resize(2, 3);
    stays_dead_ = true;
    KillAfter(2, acts);
    threads_[2].join();
    threads_.erase(2);
    const uint64_t done = Done();
    job_.Resize(2, 2, /*without_trainers=*/true);
    AwaitWorld(2);
    EXPECT_EQ(job_.memory().control().Newest()->from_step.value(), done + 1) << "no step was lost";
    stays_dead_ = false;
  }
  ExpectAsPlanned();
}

// Stage 2; the parameter is the dtype of staging.
class VirtualRanksTest : public WorldTest {
 protected:
  static JobSpec Spec() {
    JobSpec spec = StepSpec(2, 2, /*parts=*/8);
    spec.virtual_ranks = 8;
    spec.staging = static_cast<DType>(GetParam());
    return spec;
  }
  VirtualRanksTest() : WorldTest(Spec()) {}
};

TEST_P(VirtualRanksTest, TheSumIsThatOfOneOrderWhateverTheWorldAndWhoeverDies) {
  ASSERT_TRUE(Validate(spec_).ok()) << Validate(spec_);
  StartTrainers(2);
  AwaitStep(2);
  KillAfter(1, 30);
  Resize(2, 4);
  KillAfter(0, 9);
  Resize(1, 1);
  AwaitStep(Done() + 2);
  Resize(3, 8);
  KillAfter(7, 3);
  Resize(2, 2);
  ExpectAsPlanned();
}

INSTANTIATE_TEST_SUITE_P(Staging, VirtualRanksTest,
                         ::testing::Values(static_cast<int>(DType::kFloat32),
                                           static_cast<int>(DType::kBFloat16)));
INSTANTIATE_TEST_SUITE_P(Stages, WorldTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace sherd::tests

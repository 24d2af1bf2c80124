// A step that a resize of the trainers gives up, at the two instants at which that once went wrong: an owner
// that dies with the boundary half told, and a trainer that looks before its new ranks are in force.
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "client/step_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/mutex.h"
#include "tests/step/in_process_job.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

constexpr StepId kGivenUp{Step(1), 0};
constexpr uint64_t kNewRanges = 2;  // the assignment of one rank instead of two

runtime::OwnerRecords& Owner(InProcessJob& job, int slot) { return **job.memory().owner(Slot(slot)); }

// Slot 1 is the test's, and has come as far as offering the boundary; slot 0's engine decides it.
void OfferBoundary(InProcessJob& job) {
  job.engine(1).Stop();
  job.Resize(2, 1, /*without_trainers=*/true);
  Owner(job, 1).PublishBoundary({kGivenUp, 1, 1, {kNewRanges, 0, 0}});
  job.memory().control().servers[0].bell.Ring();
}

// An owner that was seen to reject the step has carried the boundary out, too: nothing lies between, where it
// could die and come back unable to do either.
TEST(GivenUpTest, ADeathFindsTheBoundaryCarriedOutOrNotBegun) {
  for (int round = 0; round < 100; ++round) {
    InProcessJob job(StepSpec(2, 2, 1), 2);
    Initialise(job);
    std::atomic<bool> torn{false};
    std::thread reader([&] {
      while (Owner(job, 0).Rejected() < kGivenUp || Owner(job, 0).Rejected().step != kGivenUp.step) {
      }
      torn = Owner(job, 0).Decided().ranges < kNewRanges;
    });
    OfferBoundary(job);
    reader.join();
    ASSERT_FALSE(torn) << "in round " << round << " a kill here would have hung the job";
    // It dies there; its successor and the other owner, which has not carried anything out, end it.
    job.RestartOwner(0);
    job.RestartOwner(1);
    job.Await([&] { return job.memory().control().AssignmentFor(Step(1))->world_size == 1; });
    EXPECT_EQ(Owner(job, 1).Rejected(), kGivenUp);
  }
}

// The rank that stays computes its share of the new world, the one that goes hears that it may, and neither
// before the assignment is in force.
TEST(GivenUpTest, NoTrainerBeginsTheNextAttemptBeforeItsRanksAreInForce) {
  InProcessJob job(StepSpec(2, 2, 1), 2);
  Initialise(job);
  job.engine(0).Stop();
  job.engine(1).Stop();
  job.memory().control().PutAssignment(kNewRanges, HostMap::OneHost(2), 1);
  std::atomic<int> resumed{0}, waiting{0};
  runtime::Notification given_up;
  std::thread trainers[2];
  for (int r = 0; r < 2; ++r) {
    trainers[r] = std::thread([&, r] {
      const std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
      client::StepWriter::Options options;
      options.on_wait = [&, told = false](absl::Duration, const std::string& what) mutable {
        EXPECT_THAT(what, ::testing::HasSubstr("the ranks of step 1#1"));
        if (!told) ++waiting;
        told = true;
      };
      client::StepWriter writer(memory.get(), Rank(r), options);
      ASSERT_TRUE(writer.Resume().ok());
      EXPECT_EQ(writer.current(), kGivenUp);
      ++resumed;
      given_up.Wait();
      ASSERT_TRUE(writer.StartOver().ok());  // as Finish would say
      EXPECT_EQ(writer.current(), kGivenUp.NextAttempt());
      EXPECT_EQ(writer.world_size(), 1);
      EXPECT_EQ(writer.in_world(), r == 0);
    });
  }
  job.Await([&] { return resumed == 2; });
  // The owners' pages as they stand between the boundary and the new ranges.
  for (int m = 0; m < 2; ++m)
    Owner(job, m).PublishBoundaryDone({kGivenUp.NextAttempt(), 1, 1, {kNewRanges, 0, 0}});
  given_up.Notify();
  job.Await([&] { return waiting == 2; });
  job.memory().control().Activate(kNewRanges, Step(1));
  for (int r = 0; r < 2; ++r) job.memory().trainer(Rank(r)).bell.Ring();
  for (std::thread& t : trainers) t.join();
}

}  // namespace
}  // namespace sherd::tests

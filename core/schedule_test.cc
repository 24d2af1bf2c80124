#include "core/schedule.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr int kUpdates = 20;

struct Golden {
  ScheduleSpec spec;
  // Rates of groups that have 0.01 and 0.003, betas of an Adam that has 0.9 and 0.999.
  double scalars[kUpdates][4];
};

const Golden kGolden[] = {
#include "core/testdata/deepspeed_schedules.inc"
};

TEST(Schedule, AgreesWithDeepSpeedsOwn) {
  for (const Golden& g : kGolden) {
    const absl::StatusOr<Schedule> schedule = Schedule::Create(g.spec);
    ASSERT_TRUE(schedule.ok()) << schedule.status();
    for (int n = 0; n < kUpdates; ++n) {
      SCOPED_TRACE(g.spec.name + " update " + std::to_string(n));
      std::vector<GroupScalars> groups(2);
      for (GroupScalars& group : groups) group[kBeta1] = 0.9, group[kBeta2] = 0.999;
      groups[0][kLr] = 0.01, groups[1][kLr] = 0.003;
      schedule->SetScalars(n, kernels::OptimizerKind::kAdam, &groups);
      EXPECT_NEAR(groups[0][kLr], g.scalars[n][0], 1e-15);
      EXPECT_NEAR(groups[1][kLr], g.scalars[n][1], 1e-15);
      for (const GroupScalars& group : groups) {
        EXPECT_NEAR(group[kBeta1], g.scalars[n][2], 1e-15);
        EXPECT_NEAR(group[kBeta2], g.scalars[n][3], 1e-15);
      }
    }
  }
}

// As DeepSpeed, which asks whether an optimizer's class has betas.
TEST(Schedule, OnlyOptimizersWithBetasHaveTheirsCycled) {
  const ScheduleSpec spec = {"OneCycle", {{"cycle_min_lr", 0.1}, {"cycle_max_lr", 1}}, ""};
  const absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
  ASSERT_TRUE(schedule.ok()) << schedule.status();
  int cycled = 0;
  for (const kernels::OptimizerInfo& info : kernels::kOptimizers) {
    std::vector<GroupScalars> groups(1);
    groups[0][kBeta1] = 0.5, groups[0][kMomentum] = 0.25;
    schedule->SetScalars(1000, info.kind, &groups);
    EXPECT_NEAR(groups[0][kLr], 0.55, 1e-15) << info.name;
    EXPECT_NEAR(groups[0][kBeta1], HasBetas(info.kind) ? 0.85 : 0.5, 1e-15) << info.name;
    EXPECT_EQ(groups[0][kMomentum], 0.25) << info.name;
    EXPECT_EQ(schedule->Betas(1000, info.kind).has_value(), HasBetas(info.kind));
    cycled += HasBetas(info.kind) ? 1 : 0;
  }
  EXPECT_EQ(cycled, 4);
  EXPECT_FALSE(HasBetas(kernels::OptimizerKind::kSgd));
  EXPECT_FALSE(Schedule::Create({"constant", {}, ""})->Betas(0, kernels::OptimizerKind::kAdam).has_value());
}

double Rate(ScheduleSpec spec, uint64_t updates) {
  const absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return schedule.ok() ? schedule->Rate(updates, 2.0) : -1;
}

// By hand, from what transformers' get_scheduler does.
TEST(Schedule, RisesFromZeroAndFallsToTheRatio) {
  EXPECT_EQ(Rate({"constant", {}, ""}, 0), 2);
  EXPECT_EQ(Rate({"constant", {{"warmup_num_steps", 4}}, ""}, 0), 0);
  EXPECT_EQ(Rate({"constant", {{"warmup_num_steps", 4}}, ""}, 3), 1.5);
  EXPECT_EQ(Rate({"constant", {{"warmup_num_steps", 4}}, ""}, 400), 2);
  const ScheduleSpec linear = {"linear", {{"total_num_steps", 10}, {"warmup_num_steps", 2}}, ""};
  const double want[] = {0, 1, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25, 0, 0};
  for (int n = 0; n < 12; ++n) EXPECT_NEAR(Rate(linear, n), want[n], 1e-15) << n;
  const ScheduleSpec cosine = {"cosine", {{"total_num_steps", 8}, {"min_lr_ratio", 0.5}}, ""};
  EXPECT_EQ(Rate(cosine, 0), 2);
  EXPECT_NEAR(Rate(cosine, 4), 1.5, 1e-15);
  EXPECT_NEAR(Rate(cosine, 8), 1, 1e-15);
  EXPECT_NEAR(Rate(cosine, 1000000000), 1, 1e-15);
}

TEST(Schedule, EveryNameIsOne) {
  for (const std::string& name : ScheduleNames()) {
    ScheduleSpec spec = {name, {}, ""};
    if (name == "OneCycle") spec.numbers = {{"cycle_min_lr", 0}, {"cycle_max_lr", 1}};
    if (!Schedule::Create(spec).ok()) spec.numbers["total_num_steps"] = 5;
    const absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
    ASSERT_TRUE(schedule.ok()) << schedule.status();
    EXPECT_EQ(schedule->name(), name);
  }
}

TEST(Schedule, BadOnesAreNamedWithTheirValue) {
  const auto problem = [](ScheduleSpec spec) {
    const absl::Status s = Schedule::Create(spec).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    return std::string(s.message());
  };
  EXPECT_EQ(
      problem({"OneCircle", {}, ""}),
      "there is no schedule \"OneCircle\"; there are constant, linear, cosine, WarmupLR, WarmupDecayLR, "
      "WarmupCosineLR, OneCycle, LRRangeTest");
  EXPECT_EQ(problem({"WarmupLR", {{"total_num_steps", 3}}, ""}),
            "schedule WarmupLR has no parameter total_num_steps; it has warmup_min_lr, warmup_max_lr, "
            "warmup_num_steps, warmup_type");
  EXPECT_EQ(problem({"WarmupLR", {{"warmup_num_steps", 0}}, ""}),
            "warmup_num_steps is 0: it must be a whole number of updates, at least 1");
  EXPECT_EQ(problem({"linear", {{"total_num_steps", 2.5}}, ""}),
            "total_num_steps is 2.5: it must be a whole number of updates, at least 1");
  EXPECT_EQ(problem({"cosine", {}, ""}),
            "schedule cosine needs total_num_steps, the updates of the whole training");
  EXPECT_EQ(problem({"WarmupCosineLR", {{"total_num_steps", 5}, {"cos_min_ratio", -1}}, ""}),
            "cos_min_ratio is -1: it must be finite and at least 0");
  EXPECT_NE(problem({"WarmupLR", {{"warmup_max_lr", std::nan("")}}, ""}), "");
  EXPECT_NE(problem({"linear", {{"total_num_steps", std::numeric_limits<double>::infinity()}}, ""}), "");
  EXPECT_EQ(problem({"WarmupLR", {}, "cubic"}), "warmup_type is \"cubic\": it must be log or linear");
  EXPECT_EQ(problem({"constant", {}, "log"}),
            "schedule constant has no warmup_type; WarmupLR, WarmupDecayLR and WarmupCosineLR have one");
}

TEST(Schedule, BadCyclesAreNamedWithTheirValue) {
  const auto cycle = [](const std::string& name, double value) {
    ScheduleSpec spec = {"OneCycle", {{"cycle_min_lr", 0.1}, {"cycle_max_lr", 1}}, ""};
    spec.numbers[name] = value;
    const absl::Status s = Schedule::Create(spec).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << name;
    return std::string(s.message());
  };
  EXPECT_EQ(cycle("cycle_first_step_size", 0),
            "cycle_first_step_size is 0: it must be a whole number of updates, at least 1");
  EXPECT_EQ(cycle("cycle_second_step_size", -1),
            "cycle_second_step_size is -1: it must be a whole number of updates, at least 0");
  EXPECT_EQ(cycle("cycle_first_stair_count", 2.5),
            "cycle_first_stair_count is 2.5: it must be a whole number of stairs, at least -1");
  EXPECT_EQ(cycle("cycle_momentum", 2), "cycle_momentum is 2: it must be 0 or 1");
  EXPECT_EQ(cycle("cycle_max_mom", 1), "cycle_max_mom is 1: it must be at least 0 and below 1");
  EXPECT_EQ(cycle("cycle_min_lr", -0.5), "cycle_min_lr is -0.5: it must be finite and at least 0");
  EXPECT_NE(cycle("cycle_min_mom", std::nan("")), "");
  const auto missing = [](ScheduleSpec spec) {
    return std::string(Schedule::Create(spec).status().message());
  };
  EXPECT_EQ(missing({"OneCycle", {{"cycle_max_lr", 1}}, ""}),
            "schedule OneCycle needs cycle_min_lr, the rate to begin and end the cycle with");
  EXPECT_EQ(missing({"OneCycle", {{"cycle_min_lr", 1}}, ""}),
            "schedule OneCycle needs cycle_max_lr, the rate in the middle of the cycle");
  EXPECT_EQ(missing({"LRRangeTest", {{"lr_range_test_step_size", 0}}, ""}),
            "lr_range_test_step_size is 0: it must be a whole number of updates, at least 1");
}

}  // namespace
}  // namespace sherd

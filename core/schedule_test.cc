#include "core/schedule.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr int kUpdates = 14;

struct Golden {
  ScheduleSpec spec;
  double rates[kUpdates][2];
};

const Golden kGolden[] = {
#include "core/testdata/deepspeed_schedules.inc"
};

TEST(Schedule, AgreesWithDeepSpeedsOwn) {
  for (const Golden& g : kGolden) {
    const absl::StatusOr<Schedule> schedule = Schedule::Create(g.spec);
    ASSERT_TRUE(schedule.ok()) << schedule.status();
    for (int n = 0; n < kUpdates; ++n) {
      EXPECT_NEAR(schedule->Rate(n, 0.01), g.rates[n][0], 1e-15) << g.spec.name << " update " << n;
      EXPECT_NEAR(schedule->Rate(n, 0.003), g.rates[n][1], 1e-15) << g.spec.name << " update " << n;
    }
  }
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
  EXPECT_EQ(problem({"OneCycle", {}, ""}),
            "there is no schedule \"OneCycle\"; there are constant, linear, cosine, WarmupLR, WarmupDecayLR, "
            "WarmupCosineLR");
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
  EXPECT_EQ(problem({"constant", {}, "log"}), "schedule constant has no warmup_type: its warm-up is linear");
}

}  // namespace
}  // namespace sherd

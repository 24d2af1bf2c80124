#include "runtime/clock.h"

#include <chrono>
#include <functional>
#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

class ClockConformance : public ::testing::TestWithParam<bool> {
 protected:
  ClockConformance() {
    if (GetParam()) {
      clock_ = std::make_unique<SystemClock>();
      pass_ = [] {};  // it passes by itself
    } else {
      auto clock = std::make_unique<VirtualClock>();
      pass_ = [c = clock.get()] { c->Advance(absl::Microseconds(10)); };
      clock_ = std::move(clock);
    }
  }
  std::unique_ptr<Clock> clock_;
  std::function<void()> pass_;
};

TEST_P(ClockConformance, GoesForwardAndNeverBack) {
  const absl::Duration start = clock_->Monotonic();
  absl::Duration last = start;
  do {
    pass_();
    const absl::Duration now = clock_->Monotonic();
    ASSERT_GE(now, last);
    last = now;
  } while (last - start < absl::Milliseconds(1));
}

INSTANTIATE_TEST_SUITE_P(All, ClockConformance, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "System" : "Virtual"; });

TEST(TimeOfDay, ThereAndBack) {
  const absl::Time now = SteadyNow();
  const absl::Duration left = absl::FromChrono(ToTimeOfDay(now + absl::Hours(1))) - absl::Now();
  EXPECT_LE(left, absl::Hours(1));
  EXPECT_GT(left, absl::Minutes(59));
  const absl::Time back = FromTimeOfDay(ToTimeOfDay(now));
  EXPECT_LT(absl::AbsDuration(back - now), absl::Minutes(1));
  EXPECT_EQ(ToTimeOfDay(absl::InfiniteFuture()), std::chrono::system_clock::time_point::max());
  EXPECT_EQ(FromTimeOfDay(std::chrono::system_clock::time_point::max()), absl::InfiniteFuture());
  EXPECT_LT(ToTimeOfDay(absl::InfinitePast()), std::chrono::system_clock::now());
}

TEST(VirtualClock, MovesOnlyWhenTold) {
  const absl::Time start = absl::UnixEpoch() + absl::Hours(1);
  VirtualClock clock(start);
  EXPECT_EQ(clock.Now(), start);
  EXPECT_EQ(clock.Monotonic(), absl::ZeroDuration());
  clock.Advance(absl::Seconds(5));
  clock.Advance(absl::Seconds(-5));
  EXPECT_EQ(clock.Now(), start + absl::Seconds(5));
  EXPECT_EQ(clock.Monotonic(), absl::Seconds(5));
  clock.SetTimeOfDay(absl::UnixEpoch());
  EXPECT_EQ(clock.Now(), absl::UnixEpoch());
  EXPECT_EQ(clock.Monotonic(), absl::Seconds(5));
}

}  // namespace
}  // namespace sherd::runtime

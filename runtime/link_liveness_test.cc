#include "runtime/link_liveness.h"

#include "gtest/gtest.h"
#include "runtime/refusal_log.h"

namespace sherd::runtime {
namespace {

absl::Duration Ms(int64_t ms) { return absl::Milliseconds(ms); }

TEST(LinkLiveness, SilenceMakesASuspectAndAByteClearsIt) {
  LinkLiveness liveness({}, Ms(0));
  EXPECT_FALSE(liveness.Tick(Ms(1499)).changed);
  EXPECT_FALSE(liveness.suspect());
  EXPECT_TRUE(liveness.Tick(Ms(1500)).changed);
  EXPECT_TRUE(liveness.suspect());
  EXPECT_FALSE(liveness.Tick(Ms(9000)).changed);
  EXPECT_EQ(liveness.silence(Ms(9000)), Ms(9000));
  liveness.Heard(Ms(9001));
  EXPECT_TRUE(liveness.Tick(Ms(9002)).changed);
  EXPECT_FALSE(liveness.suspect());
}

TEST(LinkLiveness, HearingNeverGoesBack) {
  LinkLiveness liveness({}, Ms(0));
  liveness.Heard(Ms(1000));
  liveness.Heard(Ms(500));
  EXPECT_EQ(liveness.silence(Ms(1100)), Ms(100));
  EXPECT_EQ(liveness.silence(Ms(900)), Ms(0));
}

TEST(LinkLiveness, HeartbeatsOnlyWhenNothingIsSent) {
  LinkLiveness liveness({}, Ms(0));
  EXPECT_FALSE(liveness.Tick(Ms(249)).heartbeat);
  EXPECT_TRUE(liveness.Tick(Ms(250)).heartbeat);
  liveness.Sent(Ms(250));
  EXPECT_FALSE(liveness.Tick(Ms(251)).heartbeat);
  liveness.Sent(Ms(400));
  EXPECT_FALSE(liveness.Tick(Ms(500)).heartbeat);
  EXPECT_TRUE(liveness.Tick(Ms(650)).heartbeat);
}

TEST(LinkLiveness, TicksComeInTime) {
  LinkLiveness liveness({}, Ms(0));
  EXPECT_EQ(liveness.Tick(Ms(0)).next, Ms(250));
  liveness.Sent(Ms(1400));
  EXPECT_EQ(liveness.Tick(Ms(1400)).next, Ms(1500));  // the suspicion comes before the next heartbeat
  liveness.Heard(Ms(1450));
  EXPECT_EQ(liveness.Tick(Ms(1450)).next, Ms(1650));
  // A heartbeat that cannot be sent is not asked for without a pause.
  EXPECT_EQ(liveness.Tick(Ms(2000)).next, Ms(2250));
}

TEST(RefusalLog, OneLineForAnAddress) {
  RefusalLog log(Ms(10000));
  EXPECT_EQ(log.Refused("a", Ms(0)), 0);
  EXPECT_EQ(log.Refused("b", Ms(1)), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(log.Refused("a", Ms(10 + i)), absl::nullopt);
  EXPECT_EQ(log.Refused("a", Ms(10000)), 5);
  EXPECT_EQ(log.Refused("a", Ms(10001)), absl::nullopt);
}

TEST(RefusalLog, IsBounded) {
  RefusalLog log(Ms(10000));
  int told = 0;
  for (int i = 0; i < 10000; ++i) told += log.Refused(std::to_string(i), Ms(i % 10)).has_value();
  EXPECT_EQ(told, RefusalLog::kAddresses + 1);  // those beyond share one line
  EXPECT_TRUE(log.Refused("later", Ms(20010)).has_value());
}

}  // namespace
}  // namespace sherd::runtime

#include "client/rpc/backoff.h"

#include "gtest/gtest.h"

namespace sherd::rpc {
namespace {

TEST(Backoff, DoublesUpToTheLongestUntilPatienceEnds) {
  const absl::Time start = absl::UnixEpoch();
  Backoff backoff({absl::Milliseconds(100), absl::Milliseconds(400), absl::Seconds(2)}, start);
  EXPECT_EQ(*backoff.Next(start, 0), absl::Milliseconds(100));
  EXPECT_EQ(*backoff.Next(start, 0), absl::Milliseconds(200));
  EXPECT_EQ(*backoff.Next(start, 0), absl::Milliseconds(400));
  EXPECT_EQ(*backoff.Next(start, 0), absl::Milliseconds(400));
  EXPECT_EQ(*backoff.Next(start, 0.5), absl::Milliseconds(300));
  EXPECT_EQ(*backoff.Next(start + absl::Milliseconds(1900), 0), absl::Milliseconds(100)) << "the last try";
  EXPECT_FALSE(backoff.Next(start + absl::Seconds(2), 0).has_value());
}

TEST(Backoff, StartsAnewAfterSuccess) {
  const absl::Time start = absl::UnixEpoch();
  Backoff backoff({absl::Milliseconds(100), absl::Seconds(1), absl::Seconds(2)}, start);
  backoff.Next(start, 0);
  backoff.Next(start, 0);
  const absl::Time later = start + absl::Seconds(10);
  EXPECT_FALSE(backoff.Next(later, 0).has_value());
  backoff.Succeeded(later);
  EXPECT_EQ(*backoff.Next(later, 0), absl::Milliseconds(100));
}

}  // namespace
}  // namespace sherd::rpc

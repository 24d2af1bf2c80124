#include "core/exact_sum.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr double kMax = std::numeric_limits<double>::max();
constexpr double kTiny = std::numeric_limits<double>::denorm_min();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

ExactSum SumOf(const std::vector<double>& values) {
  ExactSum sum;
  for (double v : values) sum.Add(v);
  return sum;
}

bool SameBytes(ExactSum a, ExactSum b) {
  a.Normalize();
  b.Normalize();
  return std::memcmp(&a, &b, sizeof a) == 0;
}

uint64_t Bits(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Shewchuk's expansions with correct rounding at the end: exact as long as nothing overflows.
double Reference(const std::vector<double>& values) {
  std::vector<double> partials;
  for (double x : values) {
    size_t kept = 0;
    for (double y : partials) {
      if (std::fabs(x) < std::fabs(y)) std::swap(x, y);
      const double high = x + y;
      const double low = y - (high - x);
      if (low != 0) partials[kept++] = low;
      x = high;
    }
    partials.resize(kept);
    partials.push_back(x);
  }
  if (partials.empty()) return 0.0;
  size_t n = partials.size() - 1;
  double high = partials[n];
  double low = 0;
  while (n > 0) {
    const double x = high;
    const double y = partials[--n];
    high = x + y;
    low = y - (high - x);
    if (low != 0) break;
  }
  if (n > 0 && ((low < 0 && partials[n - 1] < 0) || (low > 0 && partials[n - 1] > 0))) {
    const double y = low * 2;
    const double x = high + y;
    if (y == x - high) high = x;
  }
  return high;
}

class ExactSumRandomTest : public ::testing::Test {
 protected:
  ExactSumRandomTest() : seed_(std::random_device()()), rng_(seed_) {
    std::cout << "seed " << seed_ << std::endl;
  }

  // Any finite double of magnitude in [2^min_exponent, 2^max_exponent).
  double Draw(int min_exponent, int max_exponent, bool with_sign) {
    const double mantissa = 1.0 + std::ldexp(static_cast<double>(rng_() >> 12), -52);
    const int exponent = min_exponent + static_cast<int>(rng_() % (max_exponent - min_exponent));
    const double magnitude = std::ldexp(mantissa, exponent);
    return with_sign && rng_() % 2 == 0 ? -magnitude : magnitude;
  }

  uint64_t seed_;
  std::mt19937_64 rng_;
};

TEST(ExactSumTest, Zeroes) {
  EXPECT_EQ(Bits(ExactSum().Value()), Bits(0.0));
  EXPECT_EQ(Bits(SumOf({-0.0}).Value()), Bits(0.0));
  EXPECT_EQ(Bits(SumOf({3.5, -3.5}).Value()), Bits(0.0));
  EXPECT_TRUE(SameBytes(SumOf({kMax, kTiny, -kMax, -kTiny}), ExactSum()));
  ExactSum zeroed;
  std::memset(static_cast<void*>(&zeroed), 0, sizeof zeroed);
  EXPECT_TRUE(SameBytes(zeroed, ExactSum()));
}

TEST(ExactSumTest, SingleValuesComeBack) {
  for (double v :
       {1.0, -1.0, 0.1, kTiny, -kTiny, 3 * kTiny, std::numeric_limits<double>::min(), kMax, -kMax,
        std::nextafter(std::numeric_limits<double>::min(), 0.0), 4503599627370497.0, 1e-300, 1e300}) {
    EXPECT_EQ(Bits(SumOf({v}).Value()), Bits(v)) << v;
  }
}

TEST(ExactSumTest, RoundsTiesToEven) {
  const double half_ulp = std::ldexp(1.0, -53);
  EXPECT_EQ(SumOf({1.0, half_ulp}).Value(), 1.0);
  EXPECT_EQ(SumOf({1.0, half_ulp, kTiny}).Value(), 1.0 + 2 * half_ulp);
  EXPECT_EQ(SumOf({1.0, half_ulp, -kTiny}).Value(), 1.0);
  EXPECT_EQ(SumOf({1.0 + 2 * half_ulp, half_ulp}).Value(), 1.0 + 4 * half_ulp);
  EXPECT_EQ(SumOf({1.0 + 2 * half_ulp, half_ulp, -kTiny}).Value(), 1.0 + 2 * half_ulp);
  EXPECT_EQ(SumOf({-1.0, -half_ulp, -kTiny}).Value(), -1.0 - 2 * half_ulp);
  EXPECT_EQ(SumOf({2.0 - 2 * half_ulp, half_ulp}).Value(), 2.0);  // the mantissa runs over
  EXPECT_EQ(SumOf({std::ldexp(1, 53), 1.0}).Value(), std::ldexp(1, 53));
  EXPECT_EQ(SumOf({std::ldexp(1, 53), 3.0}).Value(), std::ldexp(1, 53) + 4);
}

TEST(ExactSumTest, HugeAndSmallTogether) {
  EXPECT_EQ(SumOf({1e300, 1.0, -1e300}).Value(), 1.0);
  EXPECT_EQ(SumOf({kMax, kTiny, -kMax}).Value(), kTiny);
  EXPECT_EQ(SumOf({kMax, kMax}).Value(), kInfinity);
  EXPECT_EQ(SumOf({-kMax, -kMax}).Value(), -kInfinity);
  EXPECT_EQ(SumOf({kMax, kMax, -kMax}).Value(), kMax);
  EXPECT_EQ(SumOf({kMax, std::ldexp(1, 970)}).Value(), kInfinity);  // a tie; the even neighbour is 2^1024
  EXPECT_EQ(SumOf({kMax, std::ldexp(1, 970), -kTiny}).Value(), kMax);
}

TEST(ExactSumTest, Subnormals) {
  ExactSum sum;
  for (int i = 0; i < 1000; ++i) sum.Add(kTiny);
  EXPECT_EQ(sum.Value(), 1000 * kTiny);
  const double least_normal = std::numeric_limits<double>::min();
  EXPECT_EQ(SumOf({least_normal, -kTiny}).Value(), least_normal - kTiny);
  EXPECT_EQ(SumOf({least_normal - kTiny, kTiny}).Value(), least_normal);
}

TEST(ExactSumTest, NonFiniteInputs) {
  EXPECT_TRUE(SumOf({1.0}).finite());
  EXPECT_FALSE(SumOf({1.0, kInfinity}).finite());
  EXPECT_EQ(SumOf({1.0, kInfinity}).Value(), kInfinity);
  EXPECT_EQ(SumOf({-kInfinity, 1.0}).Value(), -kInfinity);
  EXPECT_TRUE(std::isnan(SumOf({kInfinity, -kInfinity}).Value()));
  EXPECT_TRUE(std::isnan(SumOf({kNaN, 1.0}).Value()));
  ExactSum sum = SumOf({2.0});
  sum.Merge(SumOf({kNaN}));
  EXPECT_FALSE(sum.finite());
  EXPECT_TRUE(std::isnan(sum.Value()));
  EXPECT_NE(SumOf({1.0, kInfinity}), SumOf({1.0}));
}

TEST(ExactSumTest, ForeignBytesAreSomeSum) {
  ExactSum sum;
  std::memset(static_cast<void*>(&sum), 0xFF, sizeof sum);
  sum.Value();
  sum.Merge(sum);
  sum.Add(1.0);
  EXPECT_FALSE(sum.finite());
  std::memset(static_cast<void*>(&sum), 0x7F, sizeof sum - 8);
  std::memset(reinterpret_cast<char*>(&sum) + sizeof sum - 8, 0, 8);
  EXPECT_EQ(sum.Value(), kInfinity);
}

TEST(ExactSumTest, MillionsOfAdditionsAndMerges) {
  ExactSum sum;
  for (int i = 0; i < 1000000; ++i) sum.Add(kMax);
  for (int i = 0; i < 999999; ++i) sum.Add(-kMax);
  EXPECT_EQ(sum.Value(), kMax);
  // Doubling by merging with itself passes the bound on waiting carries many times over.
  const double value = 0x1.fffffffffffffp-10;
  ExactSum doubled = SumOf({value});
  ExactSum negative = SumOf({-value});
  for (int i = 0; i < 64; ++i) {
    doubled.Merge(doubled);
    negative.Merge(negative);
  }
  EXPECT_EQ(doubled.Value(), std::ldexp(value, 64));
  EXPECT_EQ(negative.Value(), -std::ldexp(value, 64));
  doubled.Merge(negative);
  EXPECT_EQ(doubled, ExactSum());
}

TEST_F(ExactSumRandomTest, AgreesWithIntegers) {
  for (int round = 0; round < 200; ++round) {
    __int128 exact = 0;
    ExactSum sum;
    for (int i = 0; i < 500; ++i) {
      const double v = std::trunc(Draw(0, 110, /*with_sign=*/true));
      exact += static_cast<__int128>(v);
      sum.Add(v);
    }
    ASSERT_EQ(Bits(sum.Value()), Bits(static_cast<double>(exact)));
  }
}

TEST_F(ExactSumRandomTest, AgreesWithQuadPrecision) {
  for (int round = 0; round < 500; ++round) {
    __float128 exact = 0;  // 113 bits: enough for 1000 values spread over 40 binades
    ExactSum sum;
    const int low = static_cast<int>(rng_() % 1900) - 1000;
    for (int i = 0; i < 1000; ++i) {
      const double v = Draw(low, low + 40, round % 2 == 0);
      exact += v;
      sum.Add(v);
    }
    ASSERT_EQ(Bits(sum.Value()), Bits(static_cast<double>(exact)));
  }
}

TEST_F(ExactSumRandomTest, AgreesWithExpansionsOverTheWholeRange) {
  for (int round = 0; round < 2000; ++round) {
    std::vector<double> values(1 + rng_() % 60);
    const int low = round % 3 == 0 ? -1074 : -60;
    const int high = round % 3 == 1 ? 60 : 1010;
    for (double& v : values) v = Draw(low, high, round % 2 == 0);
    if (round % 4 == 0) values.push_back(-values.front());
    ASSERT_EQ(Bits(SumOf(values).Value()), Bits(Reference(values)));
  }
}

TEST_F(ExactSumRandomTest, OrderAndGroupingDoNotMatter) {
  std::vector<double> values(5000);
  for (double& v : values) v = Draw(-1074, 1000, /*with_sign=*/true);
  const ExactSum expected = SumOf(values);
  for (int round = 0; round < 50; ++round) {
    std::shuffle(values.begin(), values.end(), rng_);
    std::vector<ExactSum> parts(1 + rng_() % 16);
    for (double v : values) {
      ExactSum& part = parts[rng_() % parts.size()];
      part.Add(v);
      if (rng_() % 100 == 0) part.Normalize();
    }
    while (parts.size() > 1) {
      const size_t into = rng_() % (parts.size() - 1);
      parts[into].Merge(parts.back());
      parts.pop_back();
    }
    ASSERT_TRUE(SameBytes(parts[0], expected));
    ASSERT_EQ(parts[0], expected);
    ASSERT_EQ(Bits(parts[0].Value()), Bits(expected.Value()));
  }
}

TEST_F(ExactSumRandomTest, Speed) {
  std::vector<double> values(250000);
  for (double& v : values) v = Draw(-40, 10, /*with_sign=*/false);
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const ExactSum sum = SumOf(values);
    EXPECT_GT(sum.Value(), 0);
    best = std::min(
        best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::cout << "250000 additions: " << best << " ms" << std::endl;
}

}  // namespace
}  // namespace sherd

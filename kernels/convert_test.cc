#include "kernels/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/simd_targets_for_test.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace {

using half_internal::BitsOf;
using half_internal::FloatOf;

// Every sign and exponent, with the mantissas where rounding turns: about a quarter of a million floats.
std::vector<float> ManyFloats() {
  std::vector<float> all;
  for (uint32_t top = 0; top < 512; ++top) {
    for (uint32_t high : {0u, 1u, 2u, 3u, 0x3Fu, 0x40u, 0x7Eu, 0x7Fu}) {
      for (uint32_t middle = 0; middle < 16; ++middle) {
        for (uint32_t low : {0u, 1u, 0x7FFu, 0xFFFu})
          all.push_back(FloatOf(top << 23 | high << 16 | middle << 12 | low));
      }
    }
  }
  return all;
}

uint16_t One(DType dtype, float value) {
  return dtype == DType::kBFloat16 ? Bf16FromFloat(value) : Fp16FromFloat(value);
}
float One(DType dtype, uint16_t half) {
  return dtype == DType::kBFloat16 ? FloatFromBf16(half) : FloatFromFp16(half);
}
uint16_t OneDithered(DType dtype, float value, uint32_t random) {
  return dtype == DType::kBFloat16 ? Bf16FromFloatDithered(value, random)
                                   : Fp16FromFloatDithered(value, random);
}

class ConvertTest : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, ConvertTest, ::testing::Values(DType::kBFloat16, DType::kFloat16),
                         [](const auto& info) { return info.param == DType::kBFloat16 ? "bf16" : "fp16"; });

TEST_P(ConvertTest, EveryInstructionSetGivesTheBitsOfOneValue) {
  const std::vector<float> values = ManyFloats();
  const int64_t n = static_cast<int64_t>(values.size()) - 5;  // not a multiple of a vector, and not aligned
  std::vector<uint16_t> every(65536);
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<uint16_t>(i);
  const int targets = ForEachSimdTarget([&] {
    std::vector<uint16_t> halves(values.size());
    FromFloat(values.data() + 1, n, GetParam(), halves.data() + 3);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(halves[i + 3], One(GetParam(), values[i + 1])) << std::hex << BitsOf(values[i + 1]);
    }
    std::vector<float> wide(every.size());
    ToFloat(GetParam(), every.data(), static_cast<int64_t>(every.size()), wide.data());
    for (size_t i = 0; i < every.size(); ++i) {
      ASSERT_EQ(BitsOf(wide[i]), BitsOf(One(GetParam(), every[i]))) << i;
    }
  });
  EXPECT_GE(targets, 1);
}

TEST_P(ConvertTest, StochasticRoundingIsTheSameEverywhere) {
  const std::vector<float> values = ManyFloats();
  const int64_t blocks = static_cast<int64_t>(values.size()) / kBlockElements, first = int64_t{1} << 33;
  const NoiseSeed seed = {7, 12345678901};
  Floats in(blocks * kBlockElements);
  std::memcpy(in.data(), values.data(), in.size() * 4);
  ForEachSimdTarget([&] {
    std::vector<uint16_t> halves(in.size());
    RoundBlocks(in.data(), first, blocks, GetParam(), halves.data(), seed);
    for (int64_t i = 0; i < in.size(); ++i) {
      const uint16_t want = OneDithered(GetParam(), in[i], Noise(seed, first * kBlockElements + i));
      ASSERT_EQ(halves[i], want) << std::hex << BitsOf(in[i]);
    }
    // One block at a time: the same.
    std::vector<uint16_t> again(kBlockElements);
    RoundBlocks(in.data() + 3 * kBlockElements, first + 3, 1, GetParam(), again.data(), seed);
    EXPECT_EQ(std::memcmp(again.data(), &halves[3 * kBlockElements], kBlockElements * 2), 0);
  });
}

// Down or up to the neighbours, never further; exact values, infinities and NaNs as they are.
TEST_P(ConvertTest, StochasticRoundingStaysBetweenTheNeighbours) {
  for (const float value : ManyFloats()) {
    const uint16_t nearest = One(GetParam(), value);
    const float back = One(GetParam(), nearest);
    for (const uint32_t random : {0u, 1u, 0x7FFFu, 0x1FFFu, 0x12345678u, 0xFFFFFFFFu}) {
      const uint16_t got = OneDithered(GetParam(), value, random);
      if (std::isnan(value) || back == value ||
          std::isinf(One(GetParam(), OneDithered(GetParam(), value, 0)))) {
        ASSERT_EQ(got, nearest) << std::hex << BitsOf(value) << " " << random;
        continue;
      }
      const float dithered = One(GetParam(), got);
      const uint16_t down = OneDithered(GetParam(), value, 0);
      ASSERT_TRUE(got == down || got == down + 1) << std::hex << BitsOf(value);
      ASSERT_LE(std::fabs(One(GetParam(), down)), std::fabs(value));
      ASSERT_GE(std::fabs(One(GetParam(), static_cast<uint16_t>(down + 1))), std::fabs(value));
      ASSERT_EQ(std::signbit(dithered), std::signbit(value));
    }
  }
}

// The mean over elements is the value: to five deviations of a fair draw.
TEST_P(ConvertTest, StochasticRoundingIsFair) {
  constexpr int64_t kBlocks = 4096;
  const int64_t n = kBlocks * kBlockElements;
  for (const float unit : {1.0f, 0x1p-20f}) {  // a normal number; with fp16 a subnormal one
    const float low = One(GetParam(), One(GetParam(), 1.37f * unit));
    const float high = One(GetParam(), static_cast<uint16_t>(One(GetParam(), low) + 1));
    for (const double part : {0.1, 0.5, 0.8}) {
      const auto value = static_cast<float>(low + part * (static_cast<double>(high) - low));
      const double exact = (static_cast<double>(value) - low) / (static_cast<double>(high) - low);
      Floats in(n);
      for (int64_t i = 0; i < n; ++i) in[i] = value;
      std::vector<uint16_t> halves(n);
      RoundBlocks(in.data(), 0, kBlocks, GetParam(), halves.data(), {99, 3});
      int64_t up = 0;
      for (const uint16_t h : halves) up += One(GetParam(), h) == high;
      const double deviation = std::sqrt(exact * (1 - exact) / static_cast<double>(n));
      // And a 2^-13th: fp16 rounds with 13 random bits.
      EXPECT_NEAR(static_cast<double>(up) / static_cast<double>(n), exact, 5 * deviation + 0x1p-13) << value;
    }
  }
}

TEST(Convert, NoiseDependsOnSeedStepAndElement) {
  int same = 0;
  for (int64_t e = 0; e < 1000; ++e) {
    same += Noise({1, 2}, e) == Noise({1, 3}, e);
    same += Noise({1, 2}, e) == Noise({2, 2}, e);
    same += Noise({1, 2}, e) == Noise({1, 2}, e + kBlockElements);
    same += Noise({1, 2}, e) == Noise({1, 2}, e + 1);
  }
  EXPECT_LE(same, 1);
  EXPECT_EQ(Noise({1, 2}, 3), Noise({1, 2}, 3));
}

TEST(Convert, AnyToAny) {
  std::mt19937_64 random(5);
  const Floats values = RandomFloats(1001, random, true);
  for (const DType from : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const DType to : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      std::vector<float> in(1001), out(1001), wide(1001), want(1001), got(1001);
      FromFloat(values.data(), 1001, from, in.data());
      Convert(from, in.data(), to, out.data(), 1001);
      ToFloat(from, in.data(), 1001, wide.data());
      FromFloat(wide.data(), 1001, to, want.data());
      EXPECT_EQ(std::memcmp(out.data(), want.data(), 1001 * SizeOf(to)), 0);
    }
  }
}

TEST(Convert, Fp32IsCopied) {
  const float in[] = {1, NAN, -0.0f};
  float out[3] = {}, back[3] = {};
  FromFloat(in, 3, DType::kFloat32, out);
  ToFloat(DType::kFloat32, out, 3, back);
  EXPECT_EQ(std::memcmp(in, back, sizeof in), 0);
}

}  // namespace
}  // namespace kernels
}  // namespace sherd

#include "runtime/formats/half.h"

#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

namespace sherd::formats {
namespace {

using kernels::half_internal::BitsOf;
using kernels::half_internal::FloatOf;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One of the two types, with what the tests need to know of it. The references use another way than the code:
// they compute the value in double from sign, exponent and mantissa.
struct Format {
  const char* name;
  int exponent_bits, mantissa_bits;
  uint16_t (*encode)(float);
  float (*decode)(uint16_t);
  void (*encode_span)(absl::Span<const float>, absl::Span<uint16_t>);
  void (*decode_span)(absl::Span<const uint16_t>, absl::Span<float>);

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint16_t infinity() const { return static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits); }
  bool IsNan(uint16_t half) const { return (half & 0x7FFF) > infinity(); }

  double ReferenceDecode(uint16_t half) const {
    const int exponent = (half & 0x7FFF) >> mantissa_bits;
    const int mantissa = half & ((1 << mantissa_bits) - 1);
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, 1 - bias() - mantissa_bits)
                      : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias() - mantissa_bits);
    return half & 0x8000 ? -magnitude : magnitude;
  }
  // Of a finite value. Rounds the value in units of the last place, in double, under the default rounding.
  uint16_t ReferenceEncode(float value) const {
    const double magnitude = std::fabs(static_cast<double>(value));
    const int exponent = magnitude == 0 ? 1 - bias() : std::max(std::ilogb(magnitude), 1 - bias());
    const auto units = static_cast<int64_t>(std::nearbyint(std::ldexp(magnitude, mantissa_bits - exponent)));
    const int64_t bits = (static_cast<int64_t>(exponent + bias() - 1) << mantissa_bits) + units;
    const auto half = static_cast<uint16_t>(std::min<int64_t>(bits, infinity()));
    return std::signbit(value) ? half | 0x8000 : half;
  }
};

class HalfTest : public ::testing::TestWithParam<Format> {};

INSTANTIATE_TEST_SUITE_P(
    Formats, HalfTest,
    ::testing::Values(Format{"bf16", 8, 7, Bf16FromFloat, FloatFromBf16, Bf16FromFloat, FloatFromBf16},
                      Format{"fp16", 5, 10, Fp16FromFloat, FloatFromFp16, Fp16FromFloat, FloatFromFp16}),
    [](const auto& info) { return info.param.name; });

TEST_P(HalfTest, EveryHalfDecodesExactlyAndComesBack) {
  const Format& f = GetParam();
  for (int i = 0; i < 65536; ++i) {
    const auto half = static_cast<uint16_t>(i);
    const float value = f.decode(half);
    if (f.IsNan(half)) {
      const auto quiet = static_cast<uint16_t>(half | 1 << (f.mantissa_bits - 1));
      ASSERT_TRUE(std::isnan(value)) << i;
      ASSERT_EQ(BitsOf(value) >> 31, half >> 15) << i;
      ASSERT_EQ(BitsOf(value) << 9 >> (32 - f.mantissa_bits), half & ((1 << f.mantissa_bits) - 1)) << i;
      ASSERT_EQ(f.encode(value), quiet) << i;
    } else if ((half & 0x7FFF) == f.infinity()) {
      ASSERT_EQ(value, half & 0x8000 ? -kInfinity : kInfinity);
      ASSERT_EQ(f.encode(value), half);
    } else {
      ASSERT_EQ(static_cast<double>(value), f.ReferenceDecode(half)) << i;
      ASSERT_EQ(std::signbit(value), (half & 0x8000) != 0) << i;
      ASSERT_EQ(f.encode(value), half) << i;
    }
  }
}

// Between every two neighbours: the exact middle goes to the even one, its own neighbours to the nearer. As
// encoding is monotonic, this pins down every float.
TEST_P(HalfTest, RoundsToNearestEvenEverywhere) {
  const Format& f = GetParam();
  for (int i = 0; i < f.infinity(); ++i) {
    const auto below = static_cast<uint16_t>(i), above = static_cast<uint16_t>(i + 1);
    const double step =
        f.ReferenceDecode(below) - (i == 0 ? -f.ReferenceDecode(1) : f.ReferenceDecode(below - 1));
    // Above the largest finite value the next would be as far as the last; it stands for infinity.
    const double next = above == f.infinity() ? f.ReferenceDecode(below) + step : f.ReferenceDecode(above);
    const auto middle = static_cast<float>((f.ReferenceDecode(below) + next) / 2);
    ASSERT_EQ(f.encode(middle), i % 2 == 0 ? below : above) << i;
    ASSERT_EQ(f.encode(std::nextafter(middle, 0.0f)), below) << i;
    ASSERT_EQ(f.encode(std::nextafter(middle, kInfinity)), above) << i;
    ASSERT_EQ(f.encode(-middle), (i % 2 == 0 ? below : above) | 0x8000) << i;
  }
}

TEST_P(HalfTest, EdgesAndNans) {
  const Format& f = GetParam();
  EXPECT_EQ(f.encode(0.0f), 0);
  EXPECT_EQ(f.encode(-0.0f), 0x8000);
  EXPECT_EQ(f.encode(1.0f), f.bias() << f.mantissa_bits);
  EXPECT_EQ(f.encode(std::numeric_limits<float>::max()), f.infinity());
  EXPECT_EQ(f.encode(-std::numeric_limits<float>::max()), f.infinity() | 0x8000);
  const float least = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(f.encode(least), 0);
  EXPECT_EQ(f.encode(-least), 0x8000);
  // NaNs whose payload lies only in bits that are cut off must not turn into infinity.
  for (const uint32_t bits : {0x7F800001u, 0xFF800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    const uint16_t half = f.encode(FloatOf(bits));
    EXPECT_TRUE(f.IsNan(half)) << bits;
    EXPECT_NE(half & 1 << (f.mantissa_bits - 1), 0) << bits;
    EXPECT_EQ(half >> 15, bits >> 31) << bits;
  }
}

TEST_P(HalfTest, RandomFloatsMatchTheReferenceAndSpansTheScalars) {
  const Format& f = GetParam();
  const char* given = std::getenv("SHERD_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "SHERD_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  std::vector<float> values(1'000'003);  // no multiple of any vector
  for (size_t i = 0; i < values.size(); ++i) {
    // Every other one inside the range of fp16, where most of the cases are.
    const auto bits = static_cast<uint32_t>(random());
    values[i] = FloatOf(i % 2 == 0 ? bits : (bits & 0x807FFFFF) | (96 + bits / 0x800000 % 50) << 23);
  }
  std::vector<uint16_t> halves(values.size());
  f.encode_span(values, absl::MakeSpan(halves));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(halves[i], f.encode(values[i])) << BitsOf(values[i]);
    if (std::isfinite(values[i])) {
      ASSERT_EQ(halves[i], f.ReferenceEncode(values[i])) << BitsOf(values[i]);
    }
  }
  for (size_t i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  f.decode_span(halves, absl::MakeSpan(values));
  for (size_t i = 0; i < halves.size(); ++i)
    ASSERT_EQ(BitsOf(values[i]), BitsOf(f.decode(halves[i]))) << halves[i];
  for (size_t size = 0; size < 70; ++size) {  // no byte past the end
    std::vector<uint16_t> out(size + 1, 0xABCD);
    f.encode_span(absl::MakeConstSpan(values.data() + size, size), absl::MakeSpan(out.data(), size));
    ASSERT_EQ(out[size], 0xABCD);
  }
}

// Training code may have told the processor to flush subnormals; a checkpoint written then must not differ.
TEST_P(HalfTest, FlushToZeroChangesNothing) {
  const Format& f = GetParam();
  std::vector<uint16_t> all(65536), before(65536), after(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<float> values(65536), flushed(65536);
  f.decode_span(all, absl::MakeSpan(values));
  f.encode_span(values, absl::MakeSpan(before));
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // FTZ and DAZ
  f.decode_span(all, absl::MakeSpan(flushed));
  f.encode_span(values, absl::MakeSpan(after));
  _mm_setcsr(mode);
  EXPECT_EQ(before, after);
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(BitsOf(values[i]), BitsOf(flushed[i])) << i;
}

}  // namespace
}  // namespace sherd::formats

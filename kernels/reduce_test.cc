#include "kernels/reduce.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "kernels/convert.h"
#include "kernels/simd_targets_for_test.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace {

constexpr int64_t kBlocks = 3;
constexpr int64_t kElements = kBlocks * kBlockElements;

struct Case {
  int n;
  unsigned null_mask;  // bit k: source k is null
  bool scaled, accumulate, stream, special;
  DType dtype = DType::kFloat32;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (int n = 0; n <= 5; ++n) {
    for (unsigned nulls = 0; nulls < (1u << n); ++nulls) {
      for (int flags = 0; flags < 16; ++flags) {
        Case c = {n, nulls, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0};
        if (c.accumulate && c.stream) continue;
        for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
          // Bits of 16-bit sources are what matters there; every combination of nulls was seen with fp32.
          if (dtype != DType::kFloat32 && n > 3) continue;
          c.dtype = dtype;
          cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

struct Result {
  Floats out;
  Doubles sumsq{kBlocks};
};

using ReduceFn = decltype(&ReduceBlocks);

Result Reduced(ReduceFn reduce, const Case& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Floats> data;
  std::vector<AlignedArray<uint16_t>> halves;
  for (int k = 0; k < c.n; ++k) {
    data.push_back(RandomFloats(kElements, random, c.special));
    halves.emplace_back(kElements);
    if (c.dtype != DType::kFloat32) FromFloat(data[k].data(), kElements, c.dtype, halves[k].data());
  }
  Result r = {RandomFloats(kElements, random, c.special)};
  std::vector<Source> sources;
  for (int k = 0; k < c.n; ++k) {
    const bool null = ((c.null_mask >> k) & 1) != 0;
    const void* const values =
        c.dtype == DType::kFloat32 ? static_cast<const void*>(data[k].data()) : halves[k].data();
    sources.push_back({null ? nullptr : values, c.scaled ? 0.3f * (k + 1) : 1.0f, c.dtype});
  }
  reduce(sources.data(), c.n, c.accumulate, r.out.data(), kBlocks, r.sumsq.data(), c.stream);
  return r;
}

TEST(ReduceBlocks, EveryInstructionSetGivesTheBitsOfThePlainLoop) {
  const uint64_t seed = 20240607;
  RecordProperty("seed", std::to_string(seed));
  int targets = 0;
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(::testing::Message()
                 << "n " << c.n << " nulls " << c.null_mask << " scaled " << c.scaled << " accumulate "
                 << c.accumulate << " stream " << c.stream << " special " << c.special << " dtype "
                 << static_cast<int>(c.dtype) << " seed " << seed);
    const Result want = Reduced(&ReduceBlocksScalar, c, seed + c.n);
    targets = ForEachSimdTarget([&] {
      const Result got = Reduced(&ReduceBlocks, c, seed + c.n);
      ASSERT_TRUE(SameBits(got.out.data(), want.out.data(), kElements));
      ASSERT_TRUE(SameBits(got.sumsq.data(), want.sumsq.data(), kBlocks));
    });
  }
  EXPECT_GE(targets, 1);
}

TEST(ReduceBlocks, SumsInTheOrderGiven) {
  Floats big(kElements), minus_big(kElements), one(kElements), out(kElements);
  Doubles sumsq(kBlocks);
  for (int64_t i = 0; i < kElements; ++i) {
    big[i] = 1e30f;
    minus_big[i] = -1e30f;
    one[i] = 1;
  }
  const Source cancel_first[] = {{big.data(), 1}, {minus_big.data(), 1}, {one.data(), 1}};
  ReduceBlocks(cancel_first, 3, false, out.data(), kBlocks, sumsq.data(), false);
  EXPECT_EQ(out[7], 1);
  EXPECT_EQ(sumsq[0], 256);
  const Source lose_first[] = {{big.data(), 1}, {one.data(), 1}, {minus_big.data(), 1}};
  ReduceBlocks(lose_first, 3, false, out.data(), kBlocks, sumsq.data(), false);
  EXPECT_EQ(out[7], 0);
}

TEST(ReduceBlocks, NoLiveSourceWritesZeros) {
  Floats out(kElements);
  Doubles sumsq(kBlocks);
  for (int64_t i = 0; i < kElements; ++i) out[i] = NAN;
  const Source none[] = {{nullptr, NAN}, {nullptr, 2}};
  ReduceBlocks(none, 2, false, out.data(), kBlocks, sumsq.data(), true);
  for (int64_t i = 0; i < kElements; ++i) ASSERT_EQ(out[i], 0);
  for (int64_t b = 0; b < kBlocks; ++b) ASSERT_EQ(sumsq[b], 0);
}

TEST(ReduceBlocks, SumOfSquaresIsThatOfDoubles) {
  std::mt19937_64 random(3);
  const Floats x = RandomFloats(kElements, random, false);
  Floats out(kElements);
  Doubles sumsq(kBlocks);
  const Source source = {x.data(), 1};
  ReduceBlocks(&source, 1, false, out.data(), kBlocks, sumsq.data(), false);
  for (int64_t b = 0; b < kBlocks; ++b) {
    long double want = 0;
    for (int64_t i = b * kBlockElements; i < (b + 1) * kBlockElements; ++i) want += 1.0L * x[i] * x[i];
    EXPECT_NEAR(sumsq[b], static_cast<double>(want), 1e-14 * static_cast<double>(want));
  }
}

TEST(ReduceBlocks, FlagsExactlyTheBlocksWithInfOrNan) {
  ForEachSimdTarget([] {
    // The largest finite floats everywhere do not set the flag; one bad element in any place does.
    Floats x(kElements), out(kElements);
    Doubles sumsq(kBlocks);
    for (int64_t i = 0; i < kElements; ++i) x[i] = -FLT_MAX;
    const Source source = {x.data(), 1};
    ReduceBlocks(&source, 1, false, out.data(), kBlocks, sumsq.data(), false);
    for (int64_t b = 0; b < kBlocks; ++b) EXPECT_TRUE(std::isfinite(sumsq[b]));
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      for (int64_t at = 0; at < kBlockElements; ++at) {
        x[2 * kBlockElements + at] = bad;
        ReduceBlocks(&source, 1, false, out.data(), kBlocks, sumsq.data(), false);
        for (int64_t b = 0; b < kBlocks; ++b) ASSERT_EQ(std::isfinite(sumsq[b]), b != 2);
        x[2 * kBlockElements + at] = 0;
      }
    }
  });
}

TEST(ReduceBlocks, StopsAtBrokenContracts) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  Floats x(kElements), out(kElements);
  Doubles sumsq(kBlocks);
  const Source source = {x.data(), 1};
  const Source crooked = {x.data() + 1, 1};
  EXPECT_DEATH(ReduceBlocks(&source, 1, true, out.data(), kBlocks, sumsq.data(), true), "accumulate");
  const Source mixed[] = {{x.data(), 1}, {x.data(), 1, DType::kBFloat16}};
  EXPECT_DEATH(ReduceBlocks(mixed, 2, false, out.data(), 1, sumsq.data(), false), "one dtype");
  EXPECT_DEATH(ReduceBlocks(&crooked, 1, false, out.data(), 1, sumsq.data(), false), "aligned");
  EXPECT_DEATH(ReduceBlocks(&source, 1, false, out.data() + 1, 1, sumsq.data(), false), "aligned");
}

}  // namespace
}  // namespace kernels
}  // namespace sherd

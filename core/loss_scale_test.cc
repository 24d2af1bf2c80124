#include "core/loss_scale.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

LossScaleSpec Spec(double initial, uint64_t window, uint32_t hysteresis, double min) {
  LossScaleSpec spec;
  spec.dynamic = true;
  spec.initial = initial, spec.window = window, spec.hysteresis = hysteresis, spec.min = min;
  return spec;
}

LossScale After(const LossScaleSpec& spec, const std::vector<bool>& overflows) {
  LossScale now = FirstLossScale(spec);
  for (const bool overflow : overflows) now = NextLossScale(spec, now, overflow);
  return now;
}

// The scale that each step uses, the one after the last included.
std::vector<double> Scales(const LossScaleSpec& spec, const std::vector<bool>& overflows) {
  LossScale now = FirstLossScale(spec);
  std::vector<double> scales = {now.scale};
  for (const bool overflow : overflows) {
    now = NextLossScale(spec, now, overflow);
    scales.push_back(now.scale);
  }
  return scales;
}

TEST(LossScale, GrowsAtTheExactStep) {
  const LossScaleSpec spec = Spec(8, 3, 1, 1);
  // Step i (from 0) of a clean run has seen i clean ones before it: it doubles when i is 3, 6, 9.
  EXPECT_EQ(Scales(spec, std::vector<bool>(10, false)),
            (std::vector<double>{8, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64}));
}

TEST(LossScale, TheWindowCountsFromTheLastOverflow) {
  const LossScaleSpec spec = Spec(8, 2, 1, 1);
  EXPECT_EQ(Scales(spec, {false, true, false, false, false, false, false}),
            (std::vector<double>{8, 8, 4, 4, 4, 8, 8, 16}));
  // The step right after an overflow is 0 clean ones later: it never doubles, even with a window of 1.
  EXPECT_EQ(Scales(Spec(8, 1, 1, 1), {true, false, false, false}), (std::vector<double>{8, 4, 4, 8, 16}));
}

TEST(LossScale, HysteresisSpendsItsCreditFirst) {
  const LossScaleSpec spec = Spec(16, 1000, 3, 1);
  EXPECT_EQ(Scales(spec, {true, true, true, true, true}), (std::vector<double>{16, 16, 16, 8, 4, 2}));
  // Clean steps do not give credit back ...
  EXPECT_EQ(Scales(spec, {true, false, true, false, true}), (std::vector<double>{16, 16, 16, 16, 16, 8}));
  // ... growth does.
  EXPECT_EQ(After(Spec(16, 2, 3, 1), {true, true, false, false}).credit, 1);
  const LossScale grown = After(Spec(16, 2, 3, 1), {true, true, false, false, false});
  EXPECT_EQ(grown.credit, 3);
  EXPECT_EQ(grown.scale, 32);
}

TEST(LossScale, TheFloorIsReachedAndThenAnError) {
  const LossScaleSpec spec = Spec(12, 1000, 1, 2);
  EXPECT_EQ(Scales(spec, {true, true, true}), (std::vector<double>{12, 6, 3, 2}));
  EXPECT_EQ(After(spec, {true, true, true}).floor, 0);
  const LossScale end = After(spec, {true, true, true, true});
  EXPECT_EQ(end.floor, 1);
  EXPECT_EQ(end.scale, 2);
  EXPECT_EQ(end.skipped, 4);
  for (const char* part : {"step 4", "scale, 2,", "4 skipped"}) {
    EXPECT_NE(FloorMessage(end).find(part), std::string::npos) << part << " not in: " << FloorMessage(end);
  }
  // With credit left at the floor there is no error yet.
  EXPECT_EQ(After(Spec(2, 1000, 2, 2), {true}).floor, 0);
  EXPECT_EQ(After(Spec(2, 1000, 2, 2), {true, true}).floor, 1);
}

TEST(LossScale, AStaticScaleOnlyCounts) {
  LossScaleSpec spec;
  spec.initial = 128;
  const LossScale now = After(spec, {true, true, false, true, false});
  EXPECT_EQ(now.scale, 128);
  EXPECT_EQ(now.floor, 0);
  EXPECT_EQ(now.skipped, 3);
  EXPECT_EQ(now.i, 5);
  EXPECT_EQ(now.last, 3);
}

// Every sequence of 12 steps, against the rule written down another way: by looking at all that went before.
TEST(LossScale, EverySequence) {
  constexpr int kSteps = 12;
  for (const LossScaleSpec& spec : {Spec(16, 2, 2, 4), Spec(16, 3, 1, 1), Spec(5, 1, 2, 2)}) {
    for (unsigned bits = 0; bits < 1u << kSteps; ++bits) {
      LossScale now = FirstLossScale(spec);
      double scale = spec.initial;
      uint32_t credit = spec.hysteresis;
      bool dead = false;
      for (int i = 0; i < kSteps; ++i) {
        if (bits >> i & 1) {
          if (credit > 1) {
            --credit;
          } else {
            dead |= scale == spec.min;
            scale = std::max(scale / 2, spec.min);
          }
        } else {
          int clean = 0;  // steps right before this one that did not overflow
          while (clean < i && !(bits >> (i - clean - 1) & 1)) ++clean;
          if (clean > 0 && clean % spec.window == 0) scale *= 2, credit = spec.hysteresis;
        }
        now = NextLossScale(spec, now, bits >> i & 1);
        ASSERT_EQ(now.scale, scale) << bits << " " << i;
        ASSERT_EQ(now.credit, credit) << bits << " " << i;
        ASSERT_EQ(now.floor, dead) << bits << " " << i;
      }
      ASSERT_EQ(now.skipped, __builtin_popcount(bits));
      ASSERT_EQ(now.i, kSteps);
    }
  }
}

TEST(LossScale, ValidateNamesTheField) {
  EXPECT_TRUE(Validate(LossScaleSpec()).ok());
  EXPECT_TRUE(Validate(DynamicLossScale()).ok());
  const struct {
    const char* named;
    LossScaleSpec spec;
  } cases[] = {{"initial=0", Spec(0, 1, 1, 1)},
               {"initial=nan", Spec(std::nan(""), 1, 1, 1)},
               {"initial=inf", Spec(std::numeric_limits<double>::infinity(), 1, 1, 1)},
               {"window=0", Spec(8, 0, 1, 1)},
               {"hysteresis=0", Spec(8, 1, 0, 1)},
               {"min=0", Spec(8, 1, 1, 0)},
               {"min=16", Spec(8, 1, 1, 16)}};
  for (const auto& c : cases) {
    const absl::Status s = Validate(c.spec);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_NE(s.message().find(c.named), std::string::npos) << s;
  }
}

}  // namespace
}  // namespace sherd

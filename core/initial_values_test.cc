#include "core/initial_values.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

using Kind = Initialiser::Kind;

std::vector<float> Fill(const Initialiser& how, int64_t first, int64_t n, uint64_t seed = 1,
                        absl::string_view name = "w") {
  std::vector<float> values(n);
  FillInitial(how, seed, name, first, absl::MakeSpan(values));
  return values;
}

// Known answers of the authors' Random123 library (kat_vectors, philox4x32 10).
TEST(InitialValuesTest, PhiloxIsPhilox) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(InitialValuesTest, AnyPartIsThatOfTheWhole) {
  for (const Initialiser& how : {Initialiser{Kind::kNormal, 1, 2}, Initialiser{Kind::kUniform, -1, 3},
                                 Initialiser{Kind::kConstant, 7, 0}}) {
    const std::vector<float> whole = Fill(how, 0, 50);
    for (int64_t first = 0; first < 50; ++first) {
      for (int64_t n = 0; first + n <= 50; ++n) {
        ASSERT_EQ(Fill(how, first, n), std::vector<float>(whole.begin() + first, whole.begin() + first + n));
      }
    }
  }
}

TEST(InitialValuesTest, Moments) {
  const std::vector<float> normal = Fill({Kind::kNormal, 0.5, 0.02}, 0, 1 << 20);
  double sum = 0, squares = 0, fourth = 0;
  for (const float v : normal) {
    const double z = (v - 0.5) / 0.02;
    sum += z, squares += z * z, fourth += z * z * z * z;
  }
  const double n = normal.size();
  EXPECT_NEAR(sum / n, 0, 0.005);
  EXPECT_NEAR(squares / n, 1, 0.01);
  EXPECT_NEAR(fourth / n, 3, 0.05);
  const std::vector<float> uniform = Fill({Kind::kUniform, -2, 4}, 0, 1 << 20);
  sum = squares = 0;
  for (const float v : uniform) {
    ASSERT_GE(v, -2);
    ASSERT_LT(v, 4);
    sum += v, squares += (v - 1.0) * (v - 1.0);
  }
  EXPECT_NEAR(sum / n, 1, 0.01);
  EXPECT_NEAR(squares / n, 3, 0.02);
}

TEST(InitialValuesTest, SeedsAndNamesDiffer) {
  const Initialiser how{Kind::kNormal, 0, 1};
  EXPECT_EQ(Fill(how, 0, 8), Fill(how, 0, 8));
  EXPECT_NE(Fill(how, 0, 8), Fill(how, 0, 8, 2));
  EXPECT_NE(Fill(how, 0, 8), Fill(how, 0, 8, 1, "v"));
  EXPECT_NE(Fill(how, 0, 8), Fill(how, int64_t{4} << 32, 8));
  EXPECT_EQ(how.Times(0.5), (Initialiser{Kind::kNormal, 0, 0.5}));
}

}  // namespace
}  // namespace sherd

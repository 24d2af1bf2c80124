#include "client/cli/slice_spec.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<ResolvedSlice> Of(const char* text, const std::vector<int64_t>& shape) {
  absl::StatusOr<SliceSpec> spec = ParseSlice(text);
  if (!spec.ok()) return spec.status();
  return Resolve(*spec, shape);
}

std::vector<std::vector<int64_t>> Dimensions(const ResolvedSlice& slice) {
  std::vector<std::vector<int64_t>> out;
  for (const Slice::Dimension& d : slice.dimensions) out.push_back({d.start, d.stop, d.step});
  return out;
}

TEST(SliceSpec, ReadsWhatNumPyReads) {
  const auto a = Of("0:10,:", {50, 64});
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_THAT(Dimensions(*a), ElementsAre(ElementsAre(0, 10, 1), ElementsAre(0, 64, 1)));
  EXPECT_THAT(a->shape, ElementsAre(10, 64));
  const auto b = Of("-1, 1:-1:3", {50, 64, 2});
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_THAT(Dimensions(*b),
              ElementsAre(ElementsAre(49, 50, 1), ElementsAre(1, 63, 3), ElementsAre(0, 2, 1)));
  EXPECT_THAT(b->shape, ElementsAre(21, 2));
  const auto c = Of("::7", {15});
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_THAT(c->shape, ElementsAre(3));
  EXPECT_THAT(Of("", {})->shape, IsEmpty());
  EXPECT_THAT(Of(" ", {4})->shape, ElementsAre(4));
  EXPECT_THAT(Of("2:2", {4})->shape, ElementsAre(0));
  EXPECT_THAT(Of(":", {0})->shape, ElementsAre(0));
}

TEST(SliceSpec, NamesWhatItCannotRead) {
  for (const char* bad : {"a", "1:b", "1:2:3:4", ",", "1,,2", "::0", "::-1", "1.5", ":,"}) {
    const absl::Status status = ParseSlice(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad)) << bad;
  }
}

TEST(SliceSpec, NamesWhatIsNotInTheTensor) {
  for (const char* bad : {"4", "-5", "0:5", "3:2", "1:-4", "0,0"}) {
    EXPECT_EQ(Of(bad, {4}).status().code(), absl::StatusCode::kOutOfRange) << bad;
  }
  EXPECT_THAT(std::string(Of(":,0:9", {4, 8}).status().message()),
              HasSubstr("dimension 1: 0:9 is not within 0:8"));
  EXPECT_FALSE(Of("0", {0}).ok());
}

}  // namespace
}  // namespace sherd::cli

#include "core/slice.h"

#include <numeric>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace sherd {
namespace {

std::vector<int64_t> Elements(const Slice& s, int64_t begin, int64_t end) {
  std::vector<int64_t> out;
  s.ForEachRun(begin, end, [&](int64_t first, int64_t count, int64_t stride) {
    EXPECT_GT(count, 0);
    for (int64_t i = 0; i < count; ++i) out.push_back(first + i * stride);
  });
  return out;
}

int Runs(const Slice& s) {
  int runs = 0;
  s.ForEachRun(0, s.numel(), [&](int64_t, int64_t, int64_t) { ++runs; });
  return runs;
}

// The definition: all index tuples in order.
std::vector<int64_t> Expected(const std::vector<int64_t>& shape, const std::vector<Slice::Dimension>& dims) {
  std::vector<int64_t> out = {0};
  for (size_t d = 0; d < shape.size(); ++d) {
    std::vector<int64_t> next;
    for (const int64_t e : out) {
      for (int64_t i = dims[d].start; i < dims[d].stop; i += dims[d].step) next.push_back(e * shape[d] + i);
    }
    out = next;
  }
  return out;
}

TEST(Slice, RandomSlicesMatchTheDefinitionFromAnyPoint) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 rng(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  for (int round = 0; round < 2000; ++round) {
    std::vector<int64_t> shape(below(5));
    std::vector<Slice::Dimension> dims;
    for (int64_t& size : shape) {
      size = below(6);
      const int64_t start = below(size + 1);
      dims.push_back({start, start + below(size - start + 1), 1 + below(3)});
    }
    const std::vector<int64_t> expected = Expected(shape, dims);
    const absl::StatusOr<Slice> s = Slice::Create(shape, dims);
    ASSERT_TRUE(s.ok()) << s.status();
    ASSERT_EQ(s->numel(), expected.size());
    const int64_t begin = below(s->numel() + 1);
    const int64_t end = begin + below(s->numel() - begin + 1);
    ASSERT_EQ(Elements(*s, begin, end),
              std::vector<int64_t>(expected.begin() + begin, expected.begin() + end));
  }
}

TEST(Slice, ContiguousPartsAreOneRun) {
  EXPECT_EQ(Runs(Slice::Whole({3, 4, 5})), 1);
  EXPECT_EQ(Runs(Slice::Whole({})), 1);
  EXPECT_EQ(Runs(Slice::Whole({3, 0})), 0);
  EXPECT_EQ(Runs(*Slice::Create({3, 4, 5}, {{1, 3, 1}, {0, 4, 1}, {0, 5, 1}})), 1);
  EXPECT_EQ(Runs(*Slice::Create({3, 4, 5}, {{1, 2, 1}, {1, 3, 1}, {0, 5, 1}})), 1);
  EXPECT_EQ(Runs(*Slice::Create({3, 4, 5}, {{0, 3, 1}, {1, 3, 1}, {0, 5, 1}})), 3);
}

TEST(Slice, RefusesWhatIsNotWithin) {
  const std::vector<std::vector<Slice::Dimension>> bad = {
      {}, {{-1, 1, 1}}, {{2, 1, 1}}, {{0, 5, 1}}, {{0, 1, 0}}, {{0, 1, -1}}, {{0, 1, 1}, {0, 1, 1}}};
  for (const auto& dims : bad) {
    EXPECT_EQ(Slice::Create({4}, dims).status().code(), absl::StatusCode::kOutOfRange);
  }
  EXPECT_EQ(Slice::Create({4}, {{1, 4, INT64_MAX}})->numel(), 1);
}

}  // namespace
}  // namespace sherd

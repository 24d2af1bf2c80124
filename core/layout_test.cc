#include "core/layout.h"

#include <iostream>
#include <limits>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

using Units = std::vector<std::vector<TensorSpec>>;

Layout Make(Units units) {
  absl::StatusOr<Layout> layout = Layout::Create(std::move(units));
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

void ExpectRefused(Units units, const std::vector<std::string>& words) {
  const absl::StatusOr<Layout> layout = Layout::Create(std::move(units));
  ASSERT_FALSE(layout.ok());
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& word : words) {
    EXPECT_TRUE(absl::StrContains(layout.status().message(), word)) << layout.status() << " lacks " << word;
  }
}

TEST(LayoutTest, TensorsStartOnBlocks) {
  const Layout layout = Make({{{"w", {3, 100}}, {"none", {4, 0}}, {"s", {}}}, {{"v", {256}}, {"x", {257}}}});
  ASSERT_EQ(layout.tensors().size(), 5u);
  const auto expect = [&](int t, int unit, int64_t numel, BlockRange blocks) {
    const TensorInfo& info = layout.tensors()[t];
    EXPECT_EQ(info.index, t);
    EXPECT_EQ(info.unit, unit);
    EXPECT_EQ(info.numel, numel);
    EXPECT_TRUE(info.blocks == blocks) << info.blocks.begin << ".." << info.blocks.end;
    EXPECT_EQ(layout.Find(info.spec.name), &info);
  };
  expect(0, 0, 300, {0, 2});
  expect(1, 0, 0, {2, 2});
  expect(2, 0, 1, {2, 3});
  expect(3, 1, 256, {3, 4});
  expect(4, 1, 257, {4, 6});
  EXPECT_EQ(layout.total_blocks(), 6);
  EXPECT_EQ(layout.total_elements(), 814);
  EXPECT_EQ(layout.tensors()[0].ElementsIn(0), 256);
  EXPECT_EQ(layout.tensors()[0].ElementsIn(1), 44);
  EXPECT_EQ(layout.tensors()[4].ElementsIn(5), 1);
  ASSERT_EQ(layout.units().size(), 2u);
  EXPECT_TRUE(layout.units()[1].blocks == (BlockRange{3, 6}));
  EXPECT_EQ(layout.units()[1].first_tensor, 3);
  EXPECT_EQ(layout.units()[1].end_tensor, 5);
  EXPECT_EQ(layout.Find("nobody"), nullptr);
  EXPECT_EQ(layout.Find(""), nullptr);
  EXPECT_EQ(layout.UnitAt(2), 0);
  EXPECT_EQ(layout.UnitAt(3), 1);
}

TEST(LayoutTest, EmptyLayoutsAreAllowed) {
  EXPECT_EQ(Make({}).total_blocks(), 0);
  const Layout layout = Make({{}, {{"none", {0}}}, {}});
  EXPECT_EQ(layout.total_blocks(), 0);
  EXPECT_EQ(layout.units().size(), 3u);
  layout.ForEachRun({0, 0}, [](int, BlockRange) { FAIL(); });
}

TEST(LayoutTest, RunsTileAnyRange) {
  const uint32_t seed = std::random_device()();
  std::cout << "seed " << seed << std::endl;
  std::mt19937 rng(seed);
  for (int round = 0; round < 50; ++round) {
    Units units(1 + rng() % 4);
    int id = 0;
    for (auto& unit : units) {
      for (int n = rng() % 5; n > 0; --n) {
        unit.push_back({absl::StrCat("t", id++), {static_cast<int64_t>(rng() % 3 == 0 ? 0 : rng() % 2000)}});
      }
    }
    const Layout layout = Make(units);
    for (int64_t begin = 0; begin <= layout.total_blocks(); ++begin) {
      for (int64_t end = begin; end <= layout.total_blocks(); ++end) {
        int64_t at = begin;
        layout.ForEachRun({begin, end}, [&](int t, BlockRange sub) {
          EXPECT_EQ(sub.begin, at);
          EXPECT_FALSE(sub.empty());
          EXPECT_GE(sub.begin, layout.tensors()[t].blocks.begin);
          EXPECT_LE(sub.end, layout.tensors()[t].blocks.end);
          EXPECT_EQ(layout.TensorAt(sub.begin), t);
          EXPECT_EQ(layout.TensorAt(sub.end - 1), t);
          at = sub.end;
        });
        ASSERT_EQ(at, end);
      }
    }
  }
}

TEST(LayoutTest, RefusesBadNames) {
  ExpectRefused({{{"", {1}}}}, {"tensor 0", "empty"});
  ExpectRefused({{{"ok", {1}}}, {{std::string(513, 'n'), {1}}}}, {"tensor 1", "513", "512"});
  ExpectRefused({{{"bad\xff", {1}}}}, {"tensor 0", "bad\\xff", "UTF-8"});
  ExpectRefused({{{"w", {1}}, {"v", {1}}}, {{"w", {1}}}}, {"tensor 2", "\"w\"", "tensor 0"});
  Make({{{std::string(512, 'n'), {1}}}});
}

TEST(LayoutTest, RefusesBadShapes) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  ExpectRefused({{{"w", {4, -3}}}}, {"\"w\"", "[4, -3]", "-3"});
  ExpectRefused({{{"w", {0, -3}}}}, {"-3"});
  ExpectRefused({{{"w", {huge, huge}}}}, {"\"w\"", absl::StrCat(huge)});
  ExpectRefused({{{"w", {kMaxLayoutElements, 2}}}}, {"\"w\""});
  ExpectRefused({{{"a", {kMaxLayoutElements}}, {"b", {}}}}, {"tensor 1", "\"b\""});
  ExpectRefused({{{"w", std::vector<int64_t>(17, 1)}}}, {"\"w\"", "17", "16"});
  EXPECT_EQ(Make({{{"w", {huge, huge, 0}}}}).total_blocks(), 0);
  EXPECT_EQ(Make({{{"w", std::vector<int64_t>(16, 1)}}}).total_elements(), 1);
  EXPECT_EQ(Make({{{"w", {kMaxLayoutElements}}}}).total_elements(), kMaxLayoutElements);
}

TEST(LayoutTest, RefusesBadGroupsDtypesAndTooManyTensors) {
  ExpectRefused({{{"w", {1}, DType::kFloat32, -1}}}, {"\"w\"", "group -1"});
  ExpectRefused({{{"w", {1}, DType::kFloat32, kMaxGroup + 1}}}, {"\"w\"", "65536"});
  ExpectRefused({{{"w", {1}, static_cast<DType>(9)}}}, {"\"w\"", "dtype 9"});
  ExpectRefused({std::vector<TensorSpec>(1000001)}, {"1000001", "1000000"});
}

TEST(LayoutTest, HashIsPinned) {
  // Compared across machines and builds: these values, computed from the documented bytes by another program,
  // may never change.
  EXPECT_EQ(Make({}).hash(), 0x67ce16a89ae87451u);
  EXPECT_EQ(Make({{{"w", {2, 3}}, {"b", {}, DType::kBFloat16, 1, false}}, {}}).hash(), 0x3c2591b881b9775cu);
}

TEST(LayoutTest, HashCoversEverything) {
  const Units base = {{{"w", {2, 3}}, {"v", {6}}}, {{"x", {1}}}};
  const uint64_t hash = Make(base).hash();
  EXPECT_EQ(Make(base).hash(), hash);
  EXPECT_TRUE(Make(base) == Make(base));
  std::vector<Units> others(9, base);
  others[0][0][0].name = "w2";
  others[1][0][0].shape = {3, 2};
  others[2][0][0].shape = {6};
  others[3][0][0].dtype = DType::kFloat16;
  others[4][0][0].group = 1;
  others[5][0][0].trainable = false;
  std::swap(others[6][0][0], others[6][0][1]);
  others[7] = {{base[0][0]}, {base[0][1], base[1][0]}};  // same tensors, another cut into units
  others[8].push_back({});
  for (size_t i = 0; i < others.size(); ++i) {
    EXPECT_NE(Make(others[i]).hash(), hash) << i;
    EXPECT_FALSE(Make(others[i]) == Make(base)) << i;
  }
}

std::vector<std::vector<std::string>> Names(const Units& units) {
  std::vector<std::vector<std::string>> names;
  for (const auto& unit : units) {
    names.emplace_back();
    for (const TensorSpec& spec : unit) names.back().push_back(spec.name);
  }
  return names;
}

TEST(PackUnitsTest, GreedyInOrder) {
  const Units units = PackUnits({{"a", {256}},
                                 {"frozen1", {256}, DType::kFloat32, 0, false},
                                 {"b", {1}},
                                 {"none", {0}},
                                 {"c", {1}},
                                 {"big", {5000}},
                                 {"d", {512}},
                                 {"frozen2", {10}, DType::kFloat32, 0, false}},
                                512);
  EXPECT_EQ(Names(units), (std::vector<std::vector<std::string>>{
                              {"a", "b", "none"}, {"c"}, {"big"}, {"d"}, {"frozen1", "frozen2"}}));
}

TEST(PackUnitsTest, OddSizes) {
  EXPECT_TRUE(PackUnits({}, 100).empty());
  EXPECT_EQ(PackUnits({{"a", {1}}, {"b", {1}}}, 0).size(), 2u);
  EXPECT_EQ(PackUnits({{"a", {1}}, {"b", {1}}}, -5).size(), 2u);
  // An invalid shape survives packing for Layout::Create to name.
  ExpectRefused(PackUnits({{"a", {1}}, {"bad", {-1}}, {"b", {1}}}, 1024), {"\"bad\"", "-1"});
  EXPECT_EQ(PackUnits({{"f", {1}, DType::kFloat32, 0, false}}, 1024).size(), 1u);
}

}  // namespace
}  // namespace sherd

#include "core/block_units.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

TensorSpec Tensor(std::string name, int64_t elements, bool trainable = true) {
  TensorSpec t;
  t.name = std::move(name);
  t.shape = {elements};
  t.trainable = trainable;
  return t;
}

// "a b|c" for units {a, b}, {c}; block and persistence after each.
std::string Show(const BlockUnits& u) {
  std::string out;
  for (size_t i = 0; i < u.units.size(); ++i) {
    for (const TensorSpec& t : u.units[i]) out += t.name + " ";
    out += std::to_string(u.block_of_unit[i]) + (u.persistent[i] ? "p|" : "|");
  }
  return out;
}

PersistenceLimits Limits(int64_t tensor, int64_t model = 1 << 30) {
  PersistenceLimits l;
  l.tensor = tensor, l.model = model;
  return l;
}

TEST(BlockUnitsTest, TensorsOfABlockStandTogether) {
  const std::vector<TensorSpec> specs = {Tensor("a", 300), Tensor("b", 300), Tensor("c", 300),
                                         Tensor("d", 300)};
  EXPECT_EQ(Show(PackBlocks(specs, {1, 0, 1, 0}, 1 << 20, Limits(0))), "a c 1|b d 0|");
  EXPECT_EQ(Show(PackBlocks(specs, {0, 0, 0, 0}, 1024, Limits(0))), "a b 0|c d 0|");
  EXPECT_TRUE(Layout::Create(PackBlocks(specs, {1, 0, 1, 0}, 1 << 20, Limits(0)).units).ok());
}

TEST(BlockUnitsTest, SmallTensorsStandApartAndStay) {
  const std::vector<TensorSpec> specs = {Tensor("a", 300), Tensor("s", 3), Tensor("b", 300), Tensor("t", 3)};
  EXPECT_EQ(Show(PackBlocks(specs, {0, 0, 1, 1}, 1 << 20, Limits(3))), "a 0|s 0p|b 1|t 1p|");
  EXPECT_EQ(Show(PackBlocks(specs, {0, 0, 1, 1}, 1 << 20, Limits(2))), "a s 0|b t 1|");
  // The bound of all together.
  EXPECT_EQ(Show(PackBlocks(specs, {0, 0, 1, 1}, 1 << 20, Limits(3, 5))), "a 0|s 0p|b t 1|");
}

TEST(BlockUnitsTest, WhatBelongsToNoBlockStays) {
  const std::vector<TensorSpec> specs = {Tensor("a", 300), Tensor("loose", 300), Tensor("b", 300)};
  EXPECT_EQ(Show(PackBlocks(specs, {0, kNoBlock, 0}, 1 << 20, Limits(0))), "a b 0|loose -1p|");
}

TEST(BlockUnitsTest, FrozenTensorsStandAtTheEnd) {
  const std::vector<TensorSpec> specs = {Tensor("a", 300), Tensor("f", 300, false), Tensor("b", 300),
                                         Tensor("g", 3, false)};
  EXPECT_EQ(Show(PackBlocks(specs, {0, 0, 1, 1}, 1 << 20, Limits(3))), "a 0|b 1|f 0|g 1p|");
}

TEST(BlockUnitsTest, EmptyTensorsAndNothingAtAll) {
  EXPECT_EQ(Show(PackBlocks({}, {}, 100, Limits(0))), "");
  EXPECT_EQ(Show(PackBlocks({Tensor("e", 0)}, {0}, 100, Limits(0))), "e 0p|");
}

}  // namespace
}  // namespace sherd

#include "core/reduction_tree.h"

#include <limits>

#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(ReductionTree, RanksOfAGroup) {
  const ReductionTree one;
  EXPECT_EQ(one.size(), 1);
  EXPECT_EQ(one.GroupOf(Rank(6), 7), 0);
  EXPECT_EQ(one.RanksOf(0, 7).end, 7);
  const ReductionTree tree = *ParseReductionTree("1,3,2", DType::kBFloat16);
  EXPECT_EQ(tree.size(), 3);
  int rank = 0;
  for (const int group : {0, 1, 1, 1, 2, 2}) {
    EXPECT_EQ(tree.GroupOf(Rank(rank), 6), group) << rank;
    EXPECT_LE(tree.RanksOf(group, 6).first, rank);
    EXPECT_GT(tree.RanksOf(group, 6).end, rank);
    ++rank;
  }
  EXPECT_EQ(Describe(tree), "1,3,2 in bf16");
  EXPECT_EQ(Describe(one), "1 group");
  EXPECT_EQ(Describe(*ParseReductionTree("2,2:fp16", DType::kFloat32)), "2,2 in fp16");
  EXPECT_EQ(Describe(*ParseReductionTree("2,2:fp32", DType::kBFloat16)), "2,2 in fp32");
}

TEST(ReductionTree, OneGroupIsASingleSum) {
  EXPECT_EQ(*ParseReductionTree("4", DType::kFloat16), ReductionTree());
}

TEST(ReductionTree, WhatIsNoTree) {
  for (const char* text :
       {"", "2,", "2,,2", "0,4", "-1,5", "2 2", "two,2", "2,99999999999", "2,2:", "2,2:f16", ":bf16"}) {
    const absl::StatusOr<ReductionTree> tree = ParseReductionTree(text, DType::kFloat32);
    EXPECT_EQ(tree.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_TRUE(Validate(ReductionTree(), 3).ok());
  EXPECT_TRUE(Validate(ReductionTree{{2, 2}, DType::kFloat16}, 4).ok());
  const struct {
    ReductionTree tree;
    const char* named;
  } cases[] = {
      {{{2, 2}, DType::kFloat32}, "2,2 are 4 ranks, but the job has 3"},
      {{{std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::max()}, DType::kFloat32},
       "are 4294967294 ranks"},
      {{{3}, DType::kFloat32}, "one group of 3"},
      {{{3, 0}, DType::kFloat32}, "has a group of 0 ranks"},
      {{{}, DType::kBFloat16}, "wire dtype bf16 without groups"},
      {{{1, 2}, static_cast<DType>(7)}, "wire dtype 7"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Validate(c.tree, 3);
    EXPECT_NE(status.message().find(c.named), std::string::npos) << c.named << " not in: " << status;
  }
}

}  // namespace
}  // namespace sherd

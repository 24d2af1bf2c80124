// In which order the gradients of all ranks are added up: the one thing that decides the bits of a step's
// sums.
//
//   ReductionTree tree = *ParseReductionTree("2,2", DType::kBFloat16);    // ranks 0 and 1, then 2 and 3
//   tree.GroupOf(Rank(3), /*world_size=*/4)                               // 1
//
// A sum over all ranks is, element by element,
//   t = round(p_0) + round(p_1) + ...,    p_g = sum over the ranks r of group g in order of scale_r * x_r
// in fp32, where round goes to the wire dtype and back. A rank that has nothing is passed over, and so is a
// group of such ranks. One group alone is not rounded: t = p_0. On several hosts each host's ranks are a
// group, whose partial sum travels in the wire dtype (DESIGN.md, several hosts); one host told to use the
// same tree gives the same bits.
//
// Plain values; thread-safe.
#ifndef SHERD_CORE_REDUCTION_TREE_H_
#define SHERD_CORE_REDUCTION_TREE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/types.h"

namespace sherd {

struct ReductionTree {
  // How many consecutive ranks each group has; empty: all ranks are one group.
  std::vector<int32_t> groups;
  // What partial sums of several groups are rounded to; fp32 (no rounding) when there is one.
  DType wire = DType::kFloat32;

  // At least 1.
  int size() const { return groups.empty() ? 1 : static_cast<int>(groups.size()); }
  // Ranks [first, end) of a group. REQUIRES: 0 <= group < size().
  struct Ranks {
    int32_t first = 0, end = 0;
  };
  Ranks RanksOf(int group, int world_size) const;
  // REQUIRES: Validate(tree, world_size); 0 <= rank < world_size.
  int GroupOf(Rank rank, int world_size) const;

  friend bool operator==(const ReductionTree& a, const ReductionTree& b) {
    return a.groups == b.groups && a.wire == b.wire;
  }
  friend bool operator!=(const ReductionTree& a, const ReductionTree& b) { return !(a == b); }
};

// OK, or INVALID_ARGUMENT naming what is wrong: a group without ranks, ranks that are not the world's, one
// group written out, a wire dtype that is none or stands with a single group.
absl::Status Validate(const ReductionTree& tree, int world_size);

// Of groups of so many ranks each, in order; one group alone is the tree of a single sum, whatever `wire`.
ReductionTree MakeReductionTree(std::vector<int32_t> groups, DType wire);

// Of "2,2" or "2,2:bf16"; where no wire dtype stands, it is `wire`.
//   INVALID_ARGUMENT  not numbers of at least 1, separated by commas; another dtype than fp32, bf16, fp16
absl::StatusOr<ReductionTree> ParseReductionTree(absl::string_view text, DType wire);

// "1 group", "2,2 in bf16".
std::string Describe(const ReductionTree& tree);

}  // namespace sherd

#endif  // SHERD_CORE_REDUCTION_TREE_H_

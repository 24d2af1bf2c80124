#include "core/reduction_tree.h"

#include <numeric>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace sherd {

ReductionTree::Ranks ReductionTree::RanksOf(int group, int world_size) const {
  if (groups.empty()) return {0, world_size};
  const int32_t first = std::accumulate(groups.begin(), groups.begin() + group, 0);
  return {first, first + groups[group]};
}

int ReductionTree::GroupOf(Rank rank, int world_size) const {
  for (int g = 0; g < size(); ++g) {
    if (rank.value() < RanksOf(g, world_size).end) return g;
  }
  ABSL_RAW_CHECK(false, "rank outside the world of its reduction tree");
  return 0;
}

absl::Status Validate(const ReductionTree& tree, int world_size) {
  const auto bad = [](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat("reduce_groups: ", what...));
  };
  const int wire = static_cast<int>(tree.wire);
  if (wire < 1 || wire > 3) return bad("wire dtype ", wire, " is not fp32 (1), bf16 (2) or fp16 (3)");
  if (tree.groups.empty()) {
    if (tree.wire == DType::kFloat32) return absl::OkStatus();
    return bad("wire dtype ", Name(tree.wire), " without groups: a single sum is not rounded");
  }
  if (tree.groups.size() == 1) return bad("one group of ", tree.groups[0], " is written as no groups");
  int64_t ranks = 0;
  for (const int32_t g : tree.groups) {
    if (g < 1) return bad(absl::StrJoin(tree.groups, ","), " has a group of ", g, " ranks; at least 1 each");
    ranks += g;
  }
  if (ranks == world_size) return absl::OkStatus();
  return bad(absl::StrJoin(tree.groups, ","), " are ", ranks, " ranks, but the job has ", world_size);
}

ReductionTree MakeReductionTree(std::vector<int32_t> groups, DType wire) {
  if (groups.size() <= 1) return {};
  return {std::move(groups), wire};
}

absl::StatusOr<ReductionTree> ParseReductionTree(absl::string_view text, DType wire) {
  const absl::string_view groups = text.substr(0, text.find(':'));
  if (groups.size() < text.size()) {
    const absl::string_view name = text.substr(groups.size() + 1);
    wire = name == "bf16" ? DType::kBFloat16 : name == "fp16" ? DType::kFloat16 : DType::kFloat32;
    if (name != Name(wire)) {
      return absl::InvalidArgumentError(absl::StrCat("reduce groups \"", absl::CHexEscape(text.substr(0, 80)),
                                                     "\": after the colon stands fp32, bf16 or fp16"));
    }
  }
  std::vector<int32_t> sizes;
  for (const absl::string_view word : absl::StrSplit(groups, ',')) {
    int32_t ranks = 0;
    if (!absl::SimpleAtoi(word, &ranks) || ranks < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("reduce groups \"", absl::CHexEscape(text.substr(0, 80)),
                       "\": give the ranks of each group, as in 2,2; each is at least 1"));
    }
    sizes.push_back(ranks);
  }
  return MakeReductionTree(std::move(sizes), wire);
}

std::string Describe(const ReductionTree& tree) {
  if (tree.groups.empty()) return "1 group";
  return absl::StrCat(absl::StrJoin(tree.groups, ","), " in ", Name(tree.wire));
}

}  // namespace sherd

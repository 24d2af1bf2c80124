#include "core/reshard_plan.h"

#include <map>
#include <tuple>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"

namespace sherd {
namespace {

std::string Show(BlockRange range) { return absl::StrCat("[", range.begin, ", ", range.end, ")"); }

void CheckServers(int servers) {
  ABSL_RAW_CHECK(servers >= 1 && servers <= kMaxServers, "number of servers out of range");
}

}  // namespace

Assignment Assignment::Uniform(const Layout& layout, int servers) {
  CheckServers(servers);
  Assignment assignment;
  assignment.units_.reserve(layout.units().size());
  for (const UnitInfo& unit : layout.units()) {
    Unit cut;
    cut.blocks = unit.blocks;
    cut.servers = servers;
    assignment.units_.push_back(cut);
  }
  return assignment;
}

absl::StatusOr<Assignment> Assignment::Create(const std::vector<std::vector<OwnedBlocks>>& units) {
  Assignment assignment;
  int64_t at = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    Unit cut;
    cut.blocks.begin = at;
    cut.first = assignment.explicit_.size();
    for (const OwnedBlocks& range : units[u]) {
      if (range.owner.value() < 0 || range.owner.value() >= kMaxServers) {
        return absl::InvalidArgumentError(absl::StrCat("unit ", u, ": blocks ", Show(range.blocks),
                                                       " have owner ", range.owner.value(), ", not in 0..",
                                                       kMaxServers - 1));
      }
      if (range.blocks.begin != at || range.blocks.end < at) {
        return absl::InvalidArgumentError(
            absl::StrCat("unit ", u, ": blocks ", Show(range.blocks), " of owner ", range.owner.value(),
                         " should begin at ", at, "; ranges must follow each other without gap or overlap"));
      }
      if (range.blocks.empty()) continue;
      at = range.blocks.end;
      const bool joins =
          assignment.explicit_.size() > cut.first && assignment.explicit_.back().owner == range.owner;
      if (joins) {
        assignment.explicit_.back().blocks.end = at;
      } else {
        assignment.explicit_.push_back(range);
      }
    }
    cut.last = assignment.explicit_.size();
    cut.blocks.end = at;
    assignment.units_.push_back(cut);
  }
  return assignment;
}

void Assignment::CutEvenly(int u, int servers) {
  CheckServers(servers);
  units_[u].servers = servers;
}

Slot Assignment::OwnerOf(int64_t block) const {
  // The last unit that begins at or before the block holds it: an empty one shares its begin with its
  // successor.
  const auto unit = std::prev(std::upper_bound(units_.begin(), units_.end(), block,
                                               [](int64_t b, const Unit& u) { return b < u.blocks.begin; }));
  if (unit->servers > 0) return sherd::OwnerOf(unit->blocks, block, unit->servers);
  ABSL_RAW_CHECK(block < unit->blocks.end, "block outside the assignment");
  const auto range = std::upper_bound(explicit_.begin() + unit->first, explicit_.begin() + unit->last, block,
                                      [](int64_t b, const OwnedBlocks& r) { return b < r.blocks.begin; });
  return std::prev(range)->owner;
}

Assignment::Cursor::Cursor(const Assignment& assignment, int unit) {
  const Unit& cut = assignment.units_[unit];
  end_ = cut.blocks.end;
  current_.blocks = {cut.blocks.begin, cut.blocks.begin};
  if (cut.servers > 0) {
    servers_ = cut.servers;
    quotient_ = cut.blocks.size() / servers_;
    remainder_ = cut.blocks.size() % servers_;
    current_.owner = Slot(-1);
  } else {
    explicit_ = assignment.explicit_.data() + cut.first;
  }
  Next();
}

void Assignment::Cursor::Next() {
  current_.blocks.begin = current_.blocks.end;
  if (done()) return;
  if (servers_ == 0) {
    current_ = *explicit_++;
    return;
  }
  while (current_.blocks.empty()) {
    ++current_.owner;
    running_ += remainder_;
    current_.blocks.end += quotient_;
    if (running_ >= servers_) {
      running_ -= servers_;
      ++current_.blocks.end;
    }
  }
}

absl::Status CheckSameUnits(const Assignment& before, const Assignment& after) {
  if (before.units() != after.units()) {
    return absl::InvalidArgumentError(absl::StrCat("assignments of different layouts: ", before.units(),
                                                   " units before, ", after.units(), " after"));
  }
  for (int u = 0; u < before.units(); ++u) {
    if (before.unit(u) == after.unit(u)) continue;
    return absl::InvalidArgumentError(absl::StrCat("assignments of different layouts: unit ", u,
                                                   " has blocks ", Show(before.unit(u)), " before, ",
                                                   Show(after.unit(u)), " after"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ReshardPlan> PlanReshard(Assignment before, Assignment after) {
  if (absl::Status status = CheckSameUnits(before, after); !status.ok()) return status;
  ReshardPlan plan(std::move(before), std::move(after));
  // By size and numbers of owners: what is counted is the same wherever such a unit begins.
  std::map<std::tuple<int64_t, int, int>, ReshardPlan::Counts> alike;
  for (int u = 0; u < plan.before_.units(); ++u) {
    const int from = plan.before_.even_servers(u), to = plan.after_.even_servers(u);
    const bool even = from > 0 && to > 0;
    const auto known = even ? alike.find({plan.before_.unit(u).size(), from, to}) : alike.end();
    ReshardPlan::Counts counts;
    if (known != alike.end()) {
      counts = known->second;
    } else {
      ForEachPieceOf(u, plan.before_, plan.after_, [&counts](const BlockMove& piece) {
        const bool moves = piece.from != piece.to;
        counts.moves += moves ? 1 : 0;
        (moves ? counts.blocks_moved : counts.blocks_kept) += piece.blocks.size();
      });
      if (even) alike[{plan.before_.unit(u).size(), from, to}] = counts;
    }
    plan.counts_.moves += counts.moves;
    plan.counts_.blocks_moved += counts.blocks_moved;
    plan.counts_.blocks_kept += counts.blocks_kept;
  }
  return plan;
}

}  // namespace sherd

#include "server/stall_watch.h"

#include <algorithm>
#include <optional>

#include "core/host_map.h"

namespace sherd::server {

namespace {

// A part of a unit that some rank wants consumed, in the middle of a step.
struct Want {
  int unit;
  Mark mark;
};

std::vector<Want> Wants(runtime::JobMemory& memory, int world_size, Step current) {
  std::vector<Want> wants;
  for (int r = 0; r < world_size; ++r) {
    for (size_t u = 0; u < memory.layout().units().size(); ++u) {
      const Mark mark(memory.rank(Rank(r)).Wanted(static_cast<int>(u)).load(std::memory_order_relaxed));
      if (mark.id().step == current) wants.push_back({static_cast<int>(u), mark});
    }
  }
  return wants;
}

}  // namespace

std::vector<StallWatch::Stalled> StallWatch::Look(runtime::JobMemory& memory, absl::Time now) {
  std::vector<Stalled> stalled;
  const absl::StatusOr<StepId> done = memory.DoneByAll();
  if (!done.ok() || !memory.MapRanks().ok()) return stalled;
  const Step current = done->step.Next();
  const std::optional<runtime::Assignment> owners = memory.control().AssignmentFor(current);
  if (!owners.has_value()) return stalled;
  const int world_size = owners->world_size;
  std::vector<bool> recorded(world_size);
  int records = 0;
  for (int r = 0; r < world_size; ++r)
    records += recorded[r] = memory.rank(Rank(r)).HasStep(current).has_value();

  std::vector<Want> wants = Wants(memory, world_size, current);
  const auto has_delivered = [&](int r, const Want& w) {
    return recorded[r] || !(memory.rank(Rank(r)).Delivered(w.unit) < w.mark);
  };

  // Unchanged signatures for long enough, of those who are waited for.
  const auto judge = [&](bool trainer, int place, uint64_t signature, bool waited_for) {
    Seen& seen = seen_[{trainer, place}];
    if (seen.signature != signature || !waited_for || seen.since == absl::Time()) {
      seen = {signature, now};
    } else if (now - seen.since >= kPatience) {
      stalled.push_back({trainer, place, now - seen.since});
    }
  };
  for (int r = 0; r < world_size; ++r) {
    uint64_t signature = current.value();
    for (size_t u = 0; u < memory.layout().units().size(); ++u) {
      signature = signature * 1099511628211u + memory.rank(Rank(r)).Delivered(static_cast<int>(u)).word();
    }
    const bool attached = memory.trainer(Rank(r)).state.load() == runtime::MemberEntry::kAttached;
    const bool wanted =
        std::any_of(wants.begin(), wants.end(), [&](const Want& w) { return !has_delivered(r, w); });
    // Of a rank on another host marks do not come here: its own servers would have to judge it.
    judge(true, r, signature, memory.IsHere(Rank(r)) && attached && !recorded[r] && (records > 0 || wanted));
  }
  // What is left are wants that owners alone can fulfil.
  wants.erase(std::remove_if(wants.begin(), wants.end(),
                             [&](const Want& w) {
                               for (int r = 0; r < world_size; ++r) {
                                 if (!has_delivered(r, w)) return true;
                               }
                               return false;
                             }),
              wants.end());
  for (int m = 0; m < owners->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
    if (!owner.ok()) continue;
    uint64_t signature = Mark::Of((*owner)->Done()).word();
    for (size_t u = 0; u < memory.layout().units().size(); ++u) {
      signature = signature * 1099511628211u +
                  (*owner)->Consumed(static_cast<int>(u)).load(std::memory_order_relaxed);
    }
    const bool behind = (*owner)->Done().step < current && !(*owner)->ReadPrepared({current, 0}).has_value();
    const bool wanted = std::any_of(wants.begin(), wants.end(), [&](const Want& w) {
      const BlockRange blocks = memory.layout().units()[w.unit].blocks;
      return !Owned(blocks, Slot(m), owners->hosts).empty() &&
             Mark((*owner)->Consumed(w.unit).load(std::memory_order_relaxed)) < w.mark;
    });
    judge(false, m, signature, (records == world_size && behind) || wanted);
  }
  return stalled;
}

}  // namespace sherd::server

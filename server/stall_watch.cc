#include "server/stall_watch.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "runtime/process_stat.h"

namespace sherd::server {
namespace {

bool IsStopped(const runtime::MemberEntry& entry) {
  const runtime::ProcessIdentity process = entry.identity();
  return runtime::IsStopped(process.pid, process.start_ticks);
}

uint64_t Mix(uint64_t signature, uint64_t word) { return signature * 1099511628211u + word; }

}  // namespace

std::string StallWatch::Stalled::Missing() const {
  if (unit < 0) return absl::StrCat(trainer ? "its record of step " : "its end of step ", step.value());
  return absl::StrCat(trainer ? "gradients of unit " : "the sum of unit ", unit, ", step ", step.value());
}

// False: there is no step in hand.
bool StallWatch::Read(runtime::JobMemory& memory, View* view) {
  const absl::StatusOr<StepId> done = memory.DoneByAll();
  if (!done.ok() || !memory.MapRanks().ok()) return false;
  view->current = done->step.Next();
  const std::optional<runtime::Assignment> owners = memory.control().AssignmentFor(view->current);
  if (!owners.has_value()) return false;
  view->owners = *owners;
  for (int r = 0; r < owners->world_size; ++r) {
    const runtime::RankRecords& rank = memory.rank(Rank(r));
    view->recorded.push_back(rank.HasStep(view->current).has_value());
    view->records += view->recorded.back() ? 1 : 0;
    for (size_t u = 0; u < memory.layout().units().size(); ++u) {
      const Mark mark(rank.Wanted(static_cast<int>(u)).load(std::memory_order_relaxed));
      if (mark.id().step == view->current) view->wants.push_back({static_cast<int>(u), mark});
    }
  }
  return true;
}

std::vector<StallWatch::Stalled> StallWatch::Look(runtime::JobMemory& memory, absl::Time now) {
  std::vector<Stalled> stalled;
  View view;
  if (!Read(memory, &view)) return stalled;
  for (int r = 0; r < view.owners.world_size; ++r) LookAtTrainer(memory, view, r, now, &stalled);
  // What is left are wants that owners alone can fulfil.
  const auto wants_a_trainer = [&](const Want& w) {
    for (int r = 0; r < view.owners.world_size; ++r) {
      if (!view.recorded[r] && memory.rank(Rank(r)).Delivered(w.unit) < w.mark) return true;
    }
    return false;
  };
  view.wants.erase(std::remove_if(view.wants.begin(), view.wants.end(), wants_a_trainer), view.wants.end());
  for (int m = 0; m < view.owners.servers; ++m) LookAtOwner(memory, view, m, now, &stalled);
  return stalled;
}

void StallWatch::Judge(Stalled who, uint64_t signature, bool waited_for, absl::Time now,
                       std::vector<Stalled>* stalled) {
  Seen& seen = seen_[{who.trainer, who.place}];
  if (seen.signature != signature || !waited_for || seen.since == absl::Time()) {
    seen = {signature, now};
  } else if (now - seen.since >= kPatience) {
    who.since = now - seen.since;
    stalled->push_back(who);
  }
}

void StallWatch::LookAtTrainer(runtime::JobMemory& memory, const View& view, int rank, absl::Time now,
                               std::vector<Stalled>* stalled) {
  const runtime::RankRecords& records = memory.rank(Rank(rank));
  Stalled who{true, rank};
  who.step = view.current;
  uint64_t signature = view.current.value();
  for (size_t u = 0; u < memory.layout().units().size(); ++u) {
    const Mark delivered = records.Delivered(static_cast<int>(u));
    signature = Mix(signature, delivered.word());
    if (who.unit < 0 && delivered.id().step < view.current) who.unit = static_cast<int>(u);
  }
  const runtime::MemberEntry& entry = memory.trainer(Rank(rank));
  // Of a rank on another host marks do not come here: its own servers would have to judge it.
  const bool here = memory.IsHere(Rank(rank)) && entry.state.load() == runtime::MemberEntry::kAttached;
  bool wanted = view.records > 0;
  for (const Want& w : view.wants) {
    if (view.recorded[rank] || !(records.Delivered(w.unit) < w.mark)) continue;
    wanted = true;
    who.unit = w.unit;
  }
  who.stopped = here && IsStopped(entry);
  Judge(who, signature, here && (who.stopped || (wanted && !view.recorded[rank])), now, stalled);
}

void StallWatch::LookAtOwner(runtime::JobMemory& memory, const View& view, int slot, absl::Time now,
                             std::vector<Stalled>* stalled) {
  const absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(slot));
  if (!owner.ok()) return;
  Stalled who{false, slot};
  who.step = view.current;
  uint64_t signature = Mark::Of((*owner)->Done()).word();
  bool wanted = view.records == view.owners.world_size && (*owner)->Done().step < view.current &&
                !(*owner)->ReadPrepared({view.current, 0}).has_value();
  for (size_t u = 0; u < memory.layout().units().size(); ++u) {
    const int unit = static_cast<int>(u);
    const Mark consumed((*owner)->Consumed(unit).load(std::memory_order_relaxed));
    signature = Mix(signature, consumed.word());
    if (Owned(memory.layout().units()[u].blocks, Slot(slot), view.owners.hosts).empty()) continue;
    if (who.unit < 0 && consumed.id().step < view.current) who.unit = unit;
    for (const Want& w : view.wants) {
      if (w.unit != unit || !(consumed < w.mark)) continue;
      wanted = true;
      who.unit = unit;
    }
  }
  who.stopped = memory.IsHere(Slot(slot), view.owners.hosts) && IsStopped(memory.control().servers[slot]);
  Judge(who, signature, wanted || who.stopped, now, stalled);
}

}  // namespace sherd::server

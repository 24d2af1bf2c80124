// Whoever pulls: copies snapshots while the job goes on.
#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {
void Read(World& w, const Oracle& oracle, Snapshot& s) {
  std::vector<Planes> copy(w.job.blocks);
  for (int b = 0; b < w.job.blocks; ++b) {
    for (int e = 0; e < kElements; ++e) {
      copy[b].param[e] = w.planes[b].param[e];
      w.Tick();
      copy[b].momentum[e] = w.planes[b].momentum[e];
      w.Tick();
    }
    copy[b].updates = w.planes[b].updates;
    w.Tick();
    if (s.index[b] >= 0) copy[b] = s.pool[s.index[b]];
  }
  const std::vector<Planes>* truth = oracle.SnapshotOf(s.id);
  w.Check(truth != nullptr, "a snapshot is cut that was not decided");
  w.Check(copy == *truth, "a snapshot is not of one step");
  w.Trace(absl::StrCat("snapshot ", s.id, " of step ", s.cut->value(), " is whole"));
  s.released = true;
  s.read = true;
  w.s.Ring();
}

}  // namespace

void RunReader(World& world, const Oracle& oracle) {
  for (;;) {
    const uint64_t ticket = world.s.Listen();
    bool worked = false;
    for (Snapshot& s : world.snapshots) {
      world.Tick();
      if (s.read || !s.cut.has_value() || world.DoneByAll().step < *s.cut) continue;
      Read(world, oracle, s);
      worked = true;
    }
    if (!worked) world.s.Wait(ticket);
  }
}

}  // namespace sherd::sim

// Whoever pulls: copies snapshots while the job goes on.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {
// The snapshot `id` as it stands on a host.
Snapshot& On(World& w, int host, uint64_t id) {
  for (Snapshot& s : w.memory[host].snapshots) {
    if (s.id == id) return s;
  }
  w.Fail("a snapshot is not on every host");
}

// Each block from the host that owns it, of one group.
void Read(World& w, const Oracle& oracle, Snapshot& s) {
  std::vector<Planes> copy(w.job.blocks);
  const int near = static_cast<int>(s.id % w.job.hosts);
  for (int b = 0; b < w.job.blocks; ++b) {
    const HostMemory& m = w.memory[w.job.HolderOf(b, near)];
    for (int e = 0; e < kElements; ++e) {
      copy[b].param[e] = m.planes[b].param[e];
      w.Tick();
      copy[b].momentum[e] = m.planes[b].momentum[e];
      w.Tick();
    }
    copy[b].updates = m.planes[b].updates;
    w.Tick();
    const Snapshot& there = On(w, m.host, s.id);
    if (there.index[b] >= 0) copy[b] = there.pool[there.index[b]];
  }
  const std::vector<Planes>* truth = oracle.SnapshotOf(s.id);
  if (truth == nullptr) w.Fail("a snapshot is cut that was not decided");
  w.Check(copy == *truth, "a snapshot is not of one step");
  w.Trace(absl::StrCat("snapshot ", s.id, " of step ", s.cut->value(), " is whole"));
  for (int h = 0; h < w.job.hosts; ++h) On(w, h, s.id).released = true;
  s.read = true;
  w.s.Ring();
}

}  // namespace

void RunReader(World& world, const Oracle& oracle) {
  for (;;) {
    const uint64_t ticket = world.s.Listen();
    bool worked = false;
    for (Snapshot& s : world.memory[0].snapshots) {
      world.Tick();
      if (s.read) continue;
      const auto cut = [&](const HostMemory& m) {
        const Snapshot& here = On(world, m.host, s.id);
        return here.cut.has_value() && m.DoneByAll().step >= *here.cut;
      };
      if (!std::all_of(world.memory.begin(), world.memory.end(), cut)) continue;
      Read(world, oracle, s);
      worked = true;
    }
    if (!worked) world.s.Wait(ticket);
  }
}

}  // namespace sherd::sim

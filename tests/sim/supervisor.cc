// Who starts processes, and what a process does before it has a place.
#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

// A server waits until the newest epoch gives it a slot.
void RunServer(World& w, Oracle& oracle, int host) {
  const ProcessIdentity me = w.Identity(w.s.current());
  for (;;) {
    const uint64_t ticket = w.s.Listen();
    w.Tick();
    for (size_t m = 0; !w.epochs.empty() && m < w.epochs.back().servers.size(); ++m) {
      if (w.epochs.back().servers[m].process == me) {
        return RunOwner(w, oracle, host, Slot(static_cast<int>(m)));
      }
    }
    w.s.Wait(ticket);
  }
}

// A trainer, until the newest epoch gives it its rank.
void RunMember(World& w, const Oracle& oracle, Rank rank) {
  const ProcessIdentity me = w.Identity(w.s.current());
  for (;;) {
    const uint64_t ticket = w.s.Listen();
    w.Tick();
    if (!w.epochs.empty() && rank.value() < static_cast<int>(w.epochs.back().trainers.size()) &&
        w.epochs.back().trainers[rank.value()].process == me) {
      // What was decided while nobody was attached may not have reached this host.
      const Proposals boundary = w.memory[0].boundary;
      HostMemory& here = w.memory[w.job.HostOfRank(rank)];
      while (!here.Settled({boundary.ranges, 0, boundary.import})) {
        const uint64_t again = w.s.Listen();
        w.Tick();
        if (!here.Settled({boundary.ranges, 0, boundary.import})) w.s.Wait(again);
      }
      return RunTrainer(w, oracle, rank);
    }
    w.s.Wait(ticket);
  }
}

}  // namespace

void RunSupervisor(World& w, Oracle& oracle) {
  for (;;) {
    const uint64_t ticket = w.s.Listen();
    w.Tick();
    // The kernel releases a dead coordinator's lock; one that is merely stopped holds it.
    const int coordinator = w.coordinator_process;
    const bool guessed = w.bug == Bug::kTwoCoordinators && coordinator >= 0 && w.s.Paused(coordinator);
    if (!w.s.Alive(coordinator) || guessed) {
      w.coordinator_process = w.s.Spawn("coordinator", true, [&] { RunCoordinator(w); });
    }
    for (int k = 0; k < static_cast<int>(w.server_process.size()); ++k) {
      if (w.s.Alive(w.server_process[k]) || w.lost[w.job.HostOfServer(k)]) continue;
      w.server_process[k] =
          w.s.Spawn(absl::StrCat("server s", k), true,
                    [&w, &oracle, host = w.job.HostOfServer(k)] { RunServer(w, oracle, host); });
      w.processes.push_back({w.server_process[k], true, k});
      w.s.Ring();
    }
    for (int h = 0; h < w.job.hosts && w.job.hosts > 1; ++h) {
      if (w.s.Alive(w.agent_process[h]) || w.lost[h]) continue;
      w.agent_process[h] = w.s.Spawn(absl::StrCat("agent ", h), true, [&w, h] { RunAgent(w, h); });
      w.s.Ring();
    }
    for (int r = 0; r < w.WantedTrainers(); ++r) {
      int& process = w.trainer_process[r];
      if (w.trainer_finished[r] || w.lost[w.job.HostOfRank(Rank(r))]) continue;
      // Now and then somebody takes a stopped trainer for lost and starts another.
      const bool impatient = process >= 0 && w.s.Paused(process) && (w.job.seed + r) % 3 == 0;
      if (w.s.Alive(process) && !impatient) continue;
      process =
          w.s.Spawn(absl::StrCat("trainer ", r), true, [&w, &oracle, r] { RunMember(w, oracle, Rank(r)); });
      w.processes.push_back({process, false, r});
      w.s.Ring();
    }
    w.s.Wait(ticket);
  }
}

}  // namespace sherd::sim

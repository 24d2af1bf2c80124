// The coordinator of the simulation, and the reader of snapshots.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

class Coordinator {
 public:
  Coordinator(World& world, Oracle& oracle) : w_(world), oracle_(oracle) {}

  void Run() {
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      w_.Tick();
      FillSlots();
      const uint64_t again = Operate();
      AdmitTrainers();
      Finish();
      w_.s.Wait(ticket, again);
    }
  }

 private:
  void FillSlots() {
    for (int m = 0; m < kMaxSlots; ++m) {
      const int process = w_.owner_process[m];
      const bool adopt_alive = w_.bug == Bug::kAdoptAlive && process >= 0 && w_.s.Paused(process);
      if (w_.s.Alive(process) && !adopt_alive) continue;
      w_.owner_process[m] = w_.s.Spawn(absl::StrCat("owner ", m), true,
                                       [&w = w_, &o = oracle_, m] { RunOwner(w, o, Slot(m)); });
      w_.Tick();
    }
  }

  bool TrainersGone() const {
    return std::none_of(w_.trainer_process.begin(), w_.trainer_process.end(),
                        [&](int p) { return w_.s.Alive(p); });
  }

  // Returns for how long there is nothing to do.
  uint64_t Operate() {
    constexpr uint64_t kUntilRung = ~uint64_t{0};
    for (Operation& op : w_.operations) {
      if (op.state == Operation::kProposed) continue;
      if (w_.DoneByAll().step < op.from) return kUntilRung;
      if (op.due == 0) op.due = w_.s.now() + op.delay;
      if (w_.s.now() < op.due) return op.due - w_.s.now();
      if (op.after_others && op.state == Operation::kPending && !Settled(w_.boundary)) return kUntilRung;
      if (op.without_trainers) {
        op.state = Operation::kClearing;
        w_.Tick();
        for (int p : w_.trainer_process) {
          if (op.kill_trainers && w_.s.Alive(p)) w_.s.Kill(p);
        }
        if (!TrainersGone()) return kUntilRung;
      }
      Propose(op);
    }
    return kUntilRung;
  }

  // What a proposal names is whole before it is proposed.
  void Propose(Operation& op) {
    const bool boundary = op.without_trainers || op.kind == Operation::kSnapshot;
    uint64_t Proposals::*word = &Proposals::ranges;
    const char* what = "resize";
    if (op.kind == Operation::kResize) {
      w_.assignments.push_back({w_.proposals.ranges + 1, op.servers, std::nullopt});
    } else if (op.kind == Operation::kSnapshot) {
      word = &Proposals::snapshot;
      what = "snapshot";
      Snapshot s;
      s.id = w_.proposals.snapshot + 1;
      s.index.assign(w_.job.blocks, -1);
      w_.snapshots.push_back(std::move(s));
    } else {
      word = &Proposals::import;
      what = "import";
    }
    w_.Tick();
    ++(w_.proposals.*word);
    w_.Trace(absl::StrCat("proposes ", what, " ", w_.proposals.*word, boundary ? " at a boundary" : ""));
    w_.s.Ring();
    w_.Tick();
    if (boundary) w_.boundary.*word = w_.proposals.*word;
    w_.s.Ring();
    w_.Tick();
    op.state = Operation::kProposed;
    w_.Tick();
  }

  // Every owner has carried out what boundaries were allowed to decide.
  bool Settled(const Proposals& goal) const {
    const AssignmentEntry a = *w_.Newest();
    if (a.epoch < goal.ranges) return false;
    for (int m = 0; m < a.servers; ++m) {
      const Proposals decided = w_.owners[m].Decided();
      if (goal.AnyNewerThan(decided)) return false;
    }
    return true;
  }

  void AdmitTrainers() {
    for (const Operation& op : w_.operations) {
      if (op.state == Operation::kClearing) return;
    }
    for (int r = 0; r < w_.job.world_size; ++r) {
      if (w_.trainer_finished[r] || w_.s.Alive(w_.trainer_process[r])) continue;
      w_.Tick();
      if (!Settled(w_.boundary)) return;
      w_.trainer_process[r] = w_.s.Spawn(absl::StrCat("trainer ", r), true,
                                         [&w = w_, &o = oracle_, r] { RunTrainer(w, o, Rank(r)); });
    }
  }

  void Finish() {
    for (const Operation& op : w_.operations) {
      if (op.state != Operation::kProposed) return;
    }
    if (!TrainersGone() || std::count(w_.trainer_finished.begin(), w_.trainer_finished.end(), false) > 0)
      return;
    // Nobody computes any more: what is left is decided at a boundary.
    if (!(w_.boundary == w_.proposals)) {
      w_.boundary = w_.proposals;
      w_.s.Ring();
    }
    for (const Snapshot& s : w_.snapshots) {
      if (!s.read && s.id <= w_.proposals.snapshot) return;
    }
    w_.settled = Settled(w_.proposals);
  }

  World& w_;
  Oracle& oracle_;
};

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

void RunCoordinator(World& world, Oracle& oracle) { Coordinator(world, oracle).Run(); }

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

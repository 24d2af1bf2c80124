// The coordinator of the simulation: core/membership over the simulated host, in the shape of
// server/coordinator.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/membership.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

class Coordinator {
 public:
  explicit Coordinator(World& world) : w_(world), m_(world.memory[0]), state_(Begin(world)) {}

  void Run() {
    if (!w_.epochs.empty()) Apply(Recovered{});
    for (int h = 0; h < w_.job.hosts && w_.job.hosts > 1; ++h) {
      Apply(HostJoined{{HostName(h), "sim:1", w_.job.groups[h], w_.job.ServersAtFirst(h)}, h, ""});
    }
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      w_.Tick();
      SeeDeaths();
      Announce();
      LookForReady();
      LookAtRanges();
      const uint64_t again = state_.formed() ? Operate() : ~uint64_t{0};
      OpenBoundary();
      Finish();
      w_.s.Wait(ticket, again);
    }
  }

 private:
  static MembershipState Begin(const World& w) {
    return w.epochs.empty() ? *MembershipState::Create({"sim", w.job.servers, w.job.world_size, w.job.hosts})
                            : *MembershipState::Restore(w.epochs.back());
  }
  static std::string HostName(int host) { return absl::StrCat("h", host); }

  // Returns the status of the answer to `request`; OK if there is none yet.
  absl::Status Ask(const Event& event, const std::string& request) {
    const Outcome outcome = state_.Apply(event, absl::UnixEpoch() + absl::Milliseconds(w_.s.now()));
    w_.Trace(outcome.reason);
    absl::Status answer;
    for (const MembershipEffect& effect : outcome.effects) {
      w_.Tick();
      if (const auto* e = absl::get_if<sherd::CommitEpoch>(&effect)) {
        w_.Check(e->doc.epoch.value() == w_.epochs.size() + 1, "two coordinators commit one epoch");
        w_.epochs.push_back(e->doc);
        w_.s.Ring();
      } else if (const auto* e = absl::get_if<MustBeDead>(&effect)) {
        if (w_.Alive(e->process)) w_.s.Kill(static_cast<int>(e->process.pid) - 1);
      } else if (const auto* e = absl::get_if<RetireServer>(&effect)) {
        if (w_.Alive(e->process)) w_.s.Kill(static_cast<int>(e->process.pid) - 1);
      } else if (const auto* e = absl::get_if<ProposeAssignment>(&effect)) {
        Propose(e->ranges_epoch.value(), e->servers, e->trainers);
      } else if (const auto* e = absl::get_if<Answer>(&effect); e != nullptr && e->request == request) {
        answer = e->status;
      }
    }
    return answer;
  }

  void Apply(const Event& event) { Ask(event, "").IgnoreError(); }

  // What a proposal names is whole, on every host, before it is proposed.
  void Propose(uint64_t epoch, int servers, int trainers) {
    const int world_size = trainers > 0 ? trainers : state_.doc().world_size;
    for (HostMemory& m : w_.memory) {
      const bool there = std::any_of(m.assignments.begin(), m.assignments.end(),
                                     [&](const AssignmentEntry& a) { return a.epoch == epoch; });
      if (!there)
        m.assignments.push_back(
            {epoch, SlotHosts(state_.doc(), servers)->Grouped(w_.job.shard_hosts), std::nullopt, world_size});
      w_.Tick();
    }
    m_.proposals.ranges = std::max(m_.proposals.ranges, epoch);
    w_.Trace(absl::StrCat("proposes ranges ", epoch, " for ", servers, " and ", world_size, " ranks"));
    w_.s.Ring();
  }

  bool SeenDead(const World::Process& p) const {
    const bool guessed = w_.bug == (p.server ? Bug::kAdoptAlive : Bug::kSkipFence) && w_.s.Paused(p.fiber);
    return guessed || !w_.s.Alive(p.fiber);
  }

  void SeeDeaths() {
    for (size_t i = 0; i < w_.processes.size(); ++i) {
      const World::Process p = w_.processes[i];
      const ProcessIdentity id = w_.Identity(p.fiber);
      if (!SeenDead(p) || !dead_.insert(p.fiber).second) continue;
      if (p.server) {
        Apply(ServerDead{absl::StrCat("s", p.key), id});
      } else {
        Apply(TrainerDead{Rank(p.key), id});
      }
    }
  }

  void Announce() {
    for (size_t i = 0; i < w_.processes.size(); ++i) {
      const World::Process p = w_.processes[i];
      const ProcessIdentity id = w_.Identity(p.fiber);
      if (!w_.s.Alive(p.fiber) || announced_.count(p.fiber) > 0) continue;
      if (p.server) {
        const std::string request = absl::StrCat("join ", p.fiber);
        // Refused while its predecessor is not seen dead: comes again.
        if (!Ask(ServerJoined{absl::StrCat("s", p.key), "sim:1", HostName(w_.job.HostOfServer(p.key)), id,
                              request},
                 request)
                 .ok())
          continue;
      } else {
        const bool member = !w_.epochs.empty() &&
                            p.key < static_cast<int>(w_.epochs.back().trainers.size()) &&
                            w_.epochs.back().trainers[p.key].process == id;
        if (p.key >= w_.WantedTrainers()) continue;
        if (!member && !Open()) continue;
        const std::string request = absl::StrCat("attach ", p.fiber);
        if (!Ask(TrainerAttached{Rank(p.key), HostName(w_.job.HostOfRank(Rank(p.key))), id,
                                 std::max(w_.job.world_size, p.key + 1), 1, request},
                 request)
                 .ok()) {
          continue;
        }
      }
      announced_.insert(p.fiber);
    }
  }

  // Whether trainers are let in: what a boundary may be deciding belongs to a time without them.
  bool Open() const {
    if (!state_.formed() || !m_.Settled({m_.boundary.ranges, 0, m_.boundary.import})) return false;
    return std::none_of(w_.operations.begin(), w_.operations.end(),
                        [](const Operation& op) { return op.state == Operation::kClearing; });
  }

  // Neither in a place nor promised one.
  bool TrainersGone() const {
    for (const World::Process& p : w_.processes) {
      if (!p.server && announced_.count(p.fiber) > 0 && w_.s.Alive(p.fiber)) return false;
    }
    if (w_.epochs.empty()) return true;
    const std::vector<TrainerMember>& all = w_.epochs.back().trainers;
    return std::none_of(all.begin(), all.end(), [&](const TrainerMember& t) { return w_.Alive(t.process); });
  }

  void LookForReady() {
    const EpochDoc& doc = state_.doc();
    for (int r = doc.world_size; r < doc.desired_trainers && doc.proposed_epoch.value() == 0; ++r) {
      const ProcessIdentity id = doc.trainers[r].process;
      if (w_.trainer_ready[r] < 0 || w_.Identity(w_.trainer_ready[r]) != id || !w_.Alive(id)) continue;
      if (!state_.trainer_ready(Rank(r))) Apply(TrainerReady{Rank(r), id});
    }
    // Nobody is left to take them in.
    const bool over = m_.DoneByAll().step.value() >= static_cast<uint64_t>(w_.job.steps);
    if (over && doc.desired_trainers > doc.world_size && doc.proposed_epoch.value() == 0) {
      Ask(ResizeRequested{0, absl::StrCat("back from ", doc.epoch.value()), doc.world_size}, "")
          .IgnoreError();
    }
  }

  void LookAtRanges() {
    const uint64_t want = state_.doc().proposed_epoch.value();
    const AssignmentEntry a = *m_.Newest();
    if (want == 0 || a.epoch != want || !m_.Settled({want, 0, 0})) return;
    // Those who own nothing any more have still the last step before to finish.
    if (m_.DoneByAll().step.Next() < *a.from && w_.bug != Bug::kRetireEarly) return;
    Apply(RangesApplied{Epoch(want)});
  }

  // Returns for how long there is nothing to do.
  uint64_t Operate() {
    constexpr uint64_t kUntilRung = ~uint64_t{0};
    for (size_t i = 0; i < w_.operations.size(); ++i) {
      Operation& op = w_.operations[i];
      if (op.state == Operation::kProposed) continue;
      if (m_.DoneByAll().step < op.from) return kUntilRung;
      if (op.due == 0) op.due = w_.s.now() + op.delay;
      if (w_.s.now() < op.due) return op.due - w_.s.now();
      if (op.after_others && op.state == Operation::kPending && !m_.Settled(m_.boundary)) return kUntilRung;
      if (op.without_trainers) {
        op.state = Operation::kClearing;
        w_.Tick();
        KillTrainers(op);
        if (!TrainersGone()) return op.kill_trainers ? kUntilRung : op.patience - w_.s.now();
      }
      if (!Begin(op, absl::StrCat("operation ", i))) {
        // What is under way may need trainers: then this one does without their absence.
        if (op.state == Operation::kClearing && state_.doc().desired_trainers != 0) {
          op.without_trainers = false;
          op.state = Operation::kPending;
          w_.Trace("lets trainers in again: another operation is under way");
          w_.s.Ring();
        }
        return kUntilRung;
      }
      op.state = Operation::kProposed;
      w_.s.Ring();  // trainers may come again
      w_.Tick();
    }
    return kUntilRung;
  }

  void KillTrainers(Operation& op) {
    // Some may have gone on before they could know that they were to leave, and wait for those that did.
    if (op.patience == 0) op.patience = w_.s.now() + 3000;
    op.kill_trainers |= w_.s.now() >= op.patience;
    if (!op.kill_trainers || w_.epochs.empty()) return;
    for (const TrainerMember& t : w_.epochs.back().trainers) {
      if (w_.Alive(t.process)) w_.s.Kill(static_cast<int>(t.process.pid) - 1);
    }
  }

  // False: not now.
  bool Begin(const Operation& op, const std::string& token) {
    if (op.kind == Operation::kResize) {
      // No host may be left without a server: then it is as if nobody had asked.
      if (!state_.doc().operation_under_way() && !SlotHosts(state_.doc(), op.servers).ok()) return true;
      return Ask(ResizeRequested{op.servers, token}, token).ok();
    }
    if (op.kind == Operation::kTrainers) {
      const absl::Status asked = Ask(ResizeRequested{0, token, op.trainers, Step(0), op.give_up_step}, token);
      return asked.ok() || absl::IsInvalidArgument(asked);  // more of them cannot be had at once
    }
    uint64_t Proposals::*word = &Proposals::import;
    const bool late = op.kind == Operation::kSnapshot && w_.bug == Bug::kPoolsLate;
    if (op.kind == Operation::kSnapshot) {
      word = &Proposals::snapshot;
      if (!late) MakePools(m_.proposals.snapshot + 1);
    }
    ++(m_.proposals.*word);
    if (late) MakePools(m_.proposals.snapshot);
    w_.Trace(absl::StrCat("proposes ", op.kind == Operation::kSnapshot ? "snapshot " : "import ",
                          m_.proposals.*word));
    w_.s.Ring();
    return true;
  }

  // On every host, the coordinator's own last: by calls to a server of each, which may take a while. One that
  // was made of this id and never proposed is a dead coordinator's, and as good.
  void MakePools(uint64_t id) {
    for (int h = w_.job.hosts - 1; h >= 0; --h) {
      HostMemory& m = w_.memory[h];
      if (!m.snapshots.empty() && m.snapshots.back().id >= id) continue;
      if (w_.job.hosts > 1) {
        const uint64_t until = w_.s.now() + random_.Below(random_.Chance(30) ? 3000 : 100);
        while (w_.s.now() < until) w_.s.Wait(w_.s.Listen(), until - w_.s.now());
      }
      Snapshot s;
      s.id = id;
      s.index.assign(w_.job.blocks, -1);
      m.snapshots.push_back(std::move(s));
      w_.Tick();
    }
  }

  // Snapshots may be cut between steps at any time; the rest only while no trainer is there.
  void OpenBoundary() {
    w_.Tick();
    Proposals allowed = m_.boundary;
    allowed.snapshot = m_.proposals.snapshot;
    if (state_.doc().give_up_step) allowed.ranges = m_.proposals.ranges;
    if (TrainersGone()) allowed = m_.proposals;
    if (allowed == m_.boundary) return;
    m_.boundary.MergeMax(allowed);
    w_.Trace("opens a boundary");
    w_.s.Ring();
  }

  void Finish() {
    for (const Operation& op : w_.operations) {
      if (op.state != Operation::kProposed) return;
    }
    if (std::count(w_.lost.begin(), w_.lost.end(), true) > 0) return;
    const std::vector<bool>& finished = w_.trainer_finished;
    if (!TrainersGone() || std::count(finished.begin(), finished.begin() + w_.WantedTrainers(), false) > 0)
      return;
    for (const Snapshot& s : m_.snapshots) {
      if (!s.read && s.id <= m_.proposals.snapshot) return;
    }
    w_.settled = m_.Settled(m_.proposals) && !state_.doc().operation_under_way();
  }

  World& w_;
  HostMemory& m_;
  MembershipState state_;
  std::set<int> announced_, dead_;
  Random random_{Random::Mix(w_.job.seed ^ 0x9001)};
};

}  // namespace

void RunCoordinator(World& world) { Coordinator(world).Run(); }

}  // namespace sherd::sim

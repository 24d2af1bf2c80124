// A trainer of the simulation, in the shape of client/step_writer.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

class Trainer {
 public:
  Trainer(World& world, const Oracle& oracle, Rank rank)
      : w_(world),
        m_(world.memory[world.job.HostOfRank(rank)]),
        oracle_(oracle),
        rank_(rank),
        me_(m_.ranks[rank.value()]),
        id_(world.s.current()) {
    w_.waits_for[id_] = [this] { return waits_for_; };
  }
  ~Trainer() { w_.waits_for.erase(id_); }

  void Run() {
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      w_.Tick();
      const StepId done = m_.DoneByAll();
      StepId next = done.NextStep();
      next.attempt = Attempt(next.step);
      const std::optional<TrainerStep>& record = me_.step[next.step.value() & 1];
      if (record.has_value() && record->id == next) {
        waits_for_ = absl::StrCat("the verdict on step ", next.ToString());
        w_.s.Wait(ticket);
        continue;
      }
      if (next.attempt > 0 && w_.bug != Bug::kOldShare && RanksChange(next.step)) {
        waits_for_ = "the ranks that a boundary has decided";
        w_.s.Wait(ticket);
        continue;
      }
      if (rank_.value() >= m_.AssignmentFor(next.step)->world_size) {
        if (took_part_ || done.step.value() >= static_cast<uint64_t>(w_.job.steps) || NotWanted() ||
            AskedToLeave(done.step)) {
          return w_.Trace("is let go");
        }
        if (w_.trainer_ready[rank_.value()] != id_) {
          w_.trainer_ready[rank_.value()] = id_;
          w_.Trace("is ready to join");
          w_.s.Ring();
        }
        waits_for_ = "the job to take it in";
        w_.s.Wait(ticket);
        continue;
      }
      took_part_ = true;
      StandBefore(done);
      if (done.step.value() >= static_cast<uint64_t>(w_.job.steps)) {
        w_.trainer_finished[rank_.value()] = true;
        w_.Trace("finished");
        w_.s.Ring();
        return;
      }
      if (AskedToLeave(done.step)) return w_.Trace("leaves");
      Compute(next);
    }
  }

 private:
  // A boundary has given the step up: its next attempt begins in the world that the boundary decided.
  bool RanksChange(Step step) const {
    const AssignmentEntry a = *m_.AssignmentFor(step);
    for (int m = 0; m < a.servers(); ++m) {
      if (m_.owners[m].Decided().ranges > a.epoch) return true;
    }
    return false;
  }
  bool NotWanted() const {
    return rank_.value() >= w_.WantedTrainers() ||
           w_.epochs.back().trainers[rank_.value()].process != w_.Identity(id_);
  }
  bool GivenUp(StepId id) const { return w_.bug != Bug::kNeverGiveUp && Attempt(id.step) > id.attempt; }

  bool AskedToLeave(Step done) const {
    const Operation* op = w_.NextOperation();
    return op != nullptr && op->without_trainers && !op->kill_trainers && op->from == done;
  }

  // The next attempt begins when every owner has rejected the one before: the STEP record that it overwrites
  // is then needed by nobody.
  uint8_t Attempt(Step step) const {
    const AssignmentEntry a = *m_.AssignmentFor(step);
    int least = 255, most = 0;
    for (int m = 0; m < a.servers(); ++m) {
      const StepId rejected = m_.owners[m].Rejected();
      const int attempt = rejected.step == step ? rejected.attempt + 1 : 0;
      least = std::min(least, attempt);
      most = std::max(most, attempt);
    }
    return static_cast<uint8_t>(w_.bug == Bug::kNextAttemptEarly ? most : least);
  }

  // What a trainer sees between steps: all of one step, and its own blob of that step.
  void StandBefore(StepId done) {
    if (done.step.value() == 0) return;
    w_.Check(oracle_.done().step == done.step, "a step is done that was not decided, or went on without me");
    for (int b = 0; b < w_.job.blocks; ++b) {
      const Planes& truth = oracle_.After(done.step)[b];
      const bool here = w_.job.Holds(m_.host, b);
      w_.Check(here ? m_.planes[b] == truth : m_.planes[b].param == truth.param,
               "parameters between two steps are not those of the step");
    }
    // A rank that was not there takes rank 0's.
    const bool there = rank_.value() < m_.AssignmentFor(done.step)->world_size;
    const Rank whose = there ? rank_ : Rank(0);
    const RankShared& from = w_.bug == Bug::kOwnBlob ? me_ : m_.ranks[whose.value()];
    const std::optional<TrainerStep>& last = from.step[done.step.value() & 1];
    const StepId committed = oracle_.Committed(done.step);
    w_.Check(last.has_value() && last->id == committed, "no STEP record of the last step");
    w_.Check(from.blob[done.step.value() & 1] == w_.job.Blob(whose, committed), "not the committed blob");
  }

  // False: the step was given up.
  bool WaitUntil(const std::string& what, StepId id, const std::function<bool()>& ready,
                 uint64_t look_again = ~uint64_t{0}) {
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      w_.Tick();
      if (ready()) return true;
      if (GivenUp(id)) return false;
      waits_for_ = what;
      w_.s.Wait(ticket, look_again > w_.s.now() ? look_again - w_.s.now() : 1);
    }
  }

  // A piece of staging that no owner reads any more.
  int Room(StepId id) {
    for (size_t location = 0; location < me_.staging.size(); ++location) {
      bool busy = false;
      for (size_t u = 0; u < me_.delivered.size() && w_.bug != Bug::kOverwriteStaging; ++u) {
        const RankShared::Delivery& d = me_.delivered[u];
        busy |= d.location == static_cast<int>(location) &&
                !m_.ConsumedByAll(static_cast<int>(u), Mark(d.mark), id);
      }
      if (!busy) return static_cast<int>(location);
    }
    return -1;
  }

  // Two ranks that deliver in different orders could wait for each other for ever: then the ring grows.
  bool SomeoneAhead(StepId id) const {
    for (const RankShared& r : m_.ranks) {
      for (size_t u = 0; u < r.delivered.size(); ++u) {
        if (Mark(r.delivered[u].mark).PartsOf(id) > Mark(me_.delivered[u].mark).PartsOf(id)) return true;
      }
    }
    return false;
  }

  // -1: the step was given up.
  int Location(int unit, StepId id) {
    if (!w_.job.ring) return unit;
    // How far ranks on other hosts are does not show here: there may be one if it takes long.
    const uint64_t long_after = w_.job.hosts > 1 ? w_.s.now() + 1000 : ~uint64_t{0};
    int location = -1;
    const bool goes_on = WaitUntil(
        "room in the ring", id,
        [&] { return (location = Room(id)) >= 0 || SomeoneAhead(id) || w_.s.now() >= long_after; },
        long_after);
    if (location >= 0 || !goes_on) return location;
    me_.staging.emplace_back();
    return static_cast<int>(me_.staging.size()) - 1;
  }

  // False: the step was given up.
  bool Deliver(const Job::Part& part, int p, StepId id) {
    RankShared::Delivery& d = me_.delivered[part.unit];
    if (p > 0 && w_.bug != Bug::kOverwriteStaging &&
        !WaitUntil(absl::StrCat("owners to consume unit ", part.unit), id,
                   [&] { return m_.ConsumedByAll(part.unit, Mark::Of(id, p), id); })) {
      return false;
    }
    int location = -1;
    if (!part.empty) {
      location = Location(part.unit, id);
      if (location < 0) return false;
      const BlockRange blocks = w_.job.units[part.unit].blocks;
      me_.staging[location].resize(std::max<size_t>(me_.staging[location].size(), blocks.size()));
      for (int64_t b = blocks.begin; b < blocks.end; ++b) {
        for (int e = 0; e < kElements; ++e) {
          me_.staging[location][b - blocks.begin][e] =
              w_.job.Gradient(rank_, id.step, part.unit, p, static_cast<int>(b), e);
          w_.Tick();
        }
      }
    }
    d.location = location;
    w_.Tick();
    d.scale = part.scale;
    w_.Tick();
    w_.Check(Mark(d.mark) < Mark::Of(id, p + 1), "a DELIVERED mark goes back");
    d.mark = Mark::Of(id, p + 1).word();
    w_.Trace(absl::StrCat("DELIVERED unit ", part.unit, " part ", p, " of step ", id.ToString(), " at ",
                          location));
    w_.s.Ring();
    w_.Tick();
    return true;
  }

  void Compute(StepId id) {
    w_.Check(oracle_.next() != id || oracle_.world_size() == m_.AssignmentFor(id.step)->world_size,
             "computes its share of a step among the ranks of another world");
    std::vector<int> parts(w_.job.units.size(), 0);
    for (const Job::Part& part : w_.job.Parts(rank_, id)) {
      const int p = parts[part.unit]++;
      const Mark mark(me_.delivered[part.unit].mark);
      if (mark.PartsOf(id) > static_cast<uint32_t>(p)) continue;  // by a predecessor
      if (!Deliver(part, p, id)) return w_.Trace(absl::StrCat("gives up step ", id.ToString()));
    }
    const int parity = id.step.value() & 1;
    me_.step[parity].reset();
    w_.Tick();
    me_.blob[parity] = w_.job.Blob(rank_, id);
    w_.Tick();
    TrainerStep record = w_.job.Record(rank_, id);
    // As every restarted trainer finds it: in the last verdict of the slot that is in every assignment.
    const std::optional<Verdict>& last = m_.owners[0].verdict;
    w_.Check(last.has_value() || id.step == Step(1), "no verdict of the last step");
    record.loss_scale = last.has_value() ? last->loss_scale : FirstLossScale(w_.job.loss_scale);
    me_.step[parity] = record;
    w_.Trace(absl::StrCat("STEP ", id.ToString()));
    w_.s.Ring();
    w_.Tick();
  }

  World& w_;
  HostMemory& m_;
  const Oracle& oracle_;
  const Rank rank_;
  RankShared& me_;
  const int id_;
  std::string waits_for_;
  bool took_part_ = false;
};

}  // namespace

void RunTrainer(World& world, const Oracle& oracle, Rank rank) { Trainer(world, oracle, rank).Run(); }

}  // namespace sherd::sim

// Hosts that are lost with their memory, and those that follow them: server/host_takeover, store by store.
#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/host_takeover.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

class Loss {
 public:
  Loss(World& world, int host) : w_(world), host_(host), m_(world.memory[host]) {
    for (int m = 0; m < m_.Newest()->servers(); ++m) {
      if (w_.job.HostOfSlot(m) == host_) slots_.push_back(m);
    }
  }

  void Lose(Oracle& oracle) {
    oracle.Forget(host_);
    w_.lost[host_] = w_.replaced[host_] = true;
    const auto kill = [&](int process) {
      if (w_.s.Alive(process)) w_.s.Kill(process);
    };
    for (const World::Process& p : w_.processes) {
      const int of = p.server ? w_.job.HostOfServer(p.key) : w_.job.HostOfRank(Rank(p.key));
      if (of == host_) kill(p.fiber);
    }
    kill(w_.agent_process[host_]);
    m_.Lose(w_.memory[0]);
    w_.Trace(absl::StrCat("*** host ", host_, " is lost with all its memory"));
    w_.s.Ring();
  }

  // Another host takes the place.
  void Follow(Random& random) {
    for (auto& [hosts, link] : w_.links) {
      if (hosts.first != host_ && hosts.second != host_) continue;
      link.up = false;
      for (std::deque<Message>& queue : link.queue) queue.clear();
    }
    const auto heard = [&] {
      for (int h = 0; h < w_.job.hosts; ++h) {
        if (w_.putting[h] == host_ && w_.s.Alive(w_.agent_process[h])) return true;
      }
      return false;
    };
    while (heard()) w_.s.Wait(w_.s.Listen(), 20);
    w_.Trace(absl::StrCat("all have cut off what was host ", host_));
    const Takeover plan = Await();
    const HostGrid grid = w_.job.Grid();
    int group = 0;
    do {
      group = random.Below(grid.groups());
    } while (group == grid.GroupOf(host_));
    Copy(w_.memory[grid.Counterpart(host_, group * grid.group)], plan);
    Install(plan, w_.memory[grid.Counterpart(host_, group * grid.group)]);
    w_.lost[host_] = false;
    w_.Trace(absl::StrCat("another host ", host_, " goes on after step ", plan.in_hand.step.value() - 1));
    w_.s.Ring();
  }

 private:
  OwnerProgress ProgressOf(const OwnerRecords& o) const {
    OwnerProgress p{o.done, o.Rejected(), std::nullopt, {}, {}};
    if (o.boundary.n > 0 && o.boundary.ranges_epoch == m_.Newest()->epoch)
      p.offered = Mark::Of(o.boundary.before, o.boundary.n);
    if (o.prepared.has_value() && o.prepared->ranges_epoch == m_.Newest()->epoch) p.prepared = o.prepared->id;
    const BoundaryOffer done = o.BoundaryDone();
    if (done.n > 0) p.boundary_done = Mark::Of(done.before, done.n);
    return p;
  }

  std::vector<Survivor> Ask() {
    std::vector<Survivor> survivors;
    for (const HostMemory& other : w_.memory) {
      if (other.host == host_) continue;
      Survivor s;
      for (int m = 0; m < m_.Newest()->servers(); ++m) {
        w_.Tick();
        if (w_.job.HostOfSlot(m) == other.host) s.own.push_back(ProgressOf(other.owners[m]));
        if (w_.job.HostOfSlot(m) == host_) s.lost.push_back(ProgressOf(other.owners[m]));
      }
      survivors.push_back(std::move(s));
    }
    return survivors;
  }

  // Of all copies of a lost slot's page, in the order in which they were made.
  std::vector<OwnerRecords> Copies(int slot) const {
    std::vector<OwnerRecords> copies;
    for (const HostMemory& other : w_.memory) {
      if (other.host != host_) copies.push_back(other.owners[slot]);
    }
    std::stable_sort(copies.begin(), copies.end(), [](const OwnerRecords& a, const OwnerRecords& b) {
      const auto key = [](const OwnerRecords& o) {
        const BoundaryOffer done = o.BoundaryDone();
        return std::make_tuple(o.done, o.Rejected(), o.prepared.has_value() ? o.prepared->id : StepId(),
                               done.n > 0 ? Mark::Of(done.before, done.n).word() : 0,
                               o.boundary.n > 0 ? Mark::Of(o.boundary.before, o.boundary.n).word() : 0);
      };
      return key(a) < key(b);
    });
    return copies;
  }

  std::optional<TrainerStep> StepOf(int rank, int parity) const {
    std::optional<TrainerStep> newest;
    for (const HostMemory& other : w_.memory) {
      if (other.host == host_) continue;
      const std::optional<TrainerStep>& here = other.ranks[rank].step[parity];
      if (here.has_value() && (!newest.has_value() || newest->id < here->id)) newest = here;
    }
    return newest;
  }

  void Tell(const Takeover& plan) {
    const bool cut = std::count(plan.has_prepared.begin(), plan.has_prepared.end(), false) == 0;
    std::vector<OwnerRecords> pages;
    for (const int slot : slots_) pages.push_back(Copies(slot).back());
    for (HostMemory& other : w_.memory) {
      if (other.host == host_) continue;
      const RankMap ranks = w_.job.Ranks();
      for (int r = ranks.first(host_); r < ranks.end(host_); ++r) {
        for (const int parity : {0, 1}) {
          const std::optional<TrainerStep> step = StepOf(r, parity);
          std::optional<TrainerStep>& there = other.ranks[r].step[parity];
          if (!step.has_value() || (there.has_value() && !(there->id < step->id))) continue;
          there.reset();
          w_.Tick();
          there = step;
          w_.Tick();
        }
      }
      for (size_t i = 0; i < slots_.size(); ++i) PutPage(w_, pages[i], &other.owners[slots_[i]]);
      w_.Tick();
      if (cut) other.cut[host_] = Mark::Of(plan.in_hand).word();
      w_.s.Ring();
    }
  }

  Takeover Await() {
    for (StepId told;;) {
      Takeover plan = PlanTakeover(Ask());
      if (plan.kind == Takeover::kGiveUp) return plan;
      w_.Trace(absl::StrCat("step ", plan.in_hand.ToString(), " may have been decided: all are told"));
      if (w_.bug == Bug::kGiveUpDecided) {
        plan.has_prepared.assign(plan.has_prepared.size(), false);
        return plan;
      }
      if (!(told == plan.in_hand)) Tell(plan);
      told = plan.in_hand;
      if (w_.bug == Bug::kCopyOldShare) return plan;
      w_.s.Wait(w_.s.Listen(), 50);
    }
  }

  void Copy(const HostMemory& from, const Takeover& plan) {
    const auto whole = [&] {
      for (int m = 0; m < from.Newest()->servers(); ++m) {
        w_.Tick();
        if (w_.job.HostOfSlot(m) != host_ && from.owners[m].done.step.Next() != plan.in_hand.step)
          return false;
      }
      return true;
    };
    while (!whole() && w_.bug == Bug::kNone) w_.s.Wait(w_.s.Listen(), 50);
    for (int b = 0; b < w_.job.blocks; ++b) {
      w_.Tick();
      if (w_.job.Holds(host_, b)) {
        m_.planes[b] = from.planes[b];
      } else {
        m_.planes[b].param = from.planes[b].param;
      }
    }
  }

  void Install(const Takeover& plan, const HostMemory& from) {
    int counterpart = -1;
    for (int m = 0; m < from.Newest()->servers(); ++m) {
      const int at = w_.job.HostOfSlot(m);
      if (at == from.host) counterpart = m;
      if (at != host_) static_cast<OwnerRecords&>(m_.owners[m]) = w_.memory[at].owners[m];
    }
    const Step done(plan.in_hand.step.value() - 1);
    for (size_t r = 0; r < m_.ranks.size(); ++r) {
      for (const int parity : {0, 1}) {
        const std::optional<TrainerStep> step = StepOf(static_cast<int>(r), parity);
        const bool here = w_.job.HostOfRank(Rank(static_cast<int>(r))) == host_;
        if (!step.has_value() || (here && done < step->id.step)) continue;
        m_.ranks[r].step[parity] = step;
        m_.ranks[r].blob[parity] = w_.job.Blob(Rank(static_cast<int>(r)), step->id);
      }
    }
    const OwnerRecords& other = from.owners[counterpart];
    for (size_t i = 0; i < slots_.size(); ++i) {
      OwnerShared& page = m_.owners[slots_[i]];
      const std::vector<uint64_t> nothing(w_.job.units.size(), 0);
      for (const OwnerRecords& copy : Copies(slots_[i])) PutPage(w_, copy, &page);
      page.consumed = page.sliced = nothing;
      page.verdict = other.verdict;
      page.rejected = other.rejected;
      for (const int n : {0, 1}) page.boundary_done[n] = other.boundary_done[n];
      for (const int parity : {0, 1}) page.decided_by_done[parity] = other.decided_by_done[parity];
      page.done = other.done;
      page.entered = other.entered;
      if (plan.has_prepared[i]) continue;
      OwnerPrepared prepared;
      prepared.id = plan.in_hand;
      prepared.ranges_epoch = m_.Newest()->epoch;
      prepared.given_up = true;
      page.prepared = prepared;
    }
  }

  World& w_;
  const int host_;
  HostMemory& m_;
  std::vector<int> slots_;
};

void WaitTicks(World& w, uint64_t ticks) {
  const uint64_t until = w.s.now() + ticks;
  while (w.s.now() < until) w.s.Wait(w.s.Listen(), until - w.s.now());
}

}  // namespace

void RunLoss(World& w, Oracle& oracle) {
  Random random(Random::Mix(w.job.seed ^ 0x10557));
  for (int n = 0; n < w.job.losses; ++n) {
    WaitTicks(w, 100 + random.Below(4000));
    // Before that a host comes as any.
    while (w.epochs.empty() || w.settled) w.s.Wait(w.s.Listen());
    Loss loss(w, 1 + random.Below(w.job.hosts - 1));
    loss.Lose(oracle);
    WaitTicks(w, random.Below(2000));
    loss.Follow(random);
  }
  for (;;) w.s.Wait(w.s.Listen());
}

}  // namespace sherd::sim

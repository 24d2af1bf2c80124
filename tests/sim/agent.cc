// The agent of a host in the simulation: sends the other hosts what is published here, in the order in which
// it was, and puts what comes from them in place.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

bool Differ(const BoundaryOffer& a, const BoundaryOffer& b) {
  return a.before != b.before || a.n != b.n || a.ranges_epoch != b.ranges_epoch;
}

// Nothing that stands there already is put again: for a moment it would be absent.
void Put(World& w, const BoundaryOffer& from, BoundaryOffer* to) {
  if (from.n == 0 || !Differ(from, *to)) return;
  to->n = 0;
  w.Tick();
  to->proposals = from.proposals;
  w.Tick();
  *to = from;
  w.Tick();
}

class Agent {
 public:
  Agent(World& world, int host)
      : w_(world), host_(host), m_(world.memory[host]), random_(world.job.seed * 31 + world.s.current()) {
    peers_.resize(w_.job.hosts);
    w_.putting[host_] = -1;
    // The kernel closed what a predecessor had open, and what had come for it is gone with it: it may have
    // died in the middle of one message, and nobody is to carry out the next.
    for (int peer = 0; peer < w_.job.hosts; ++peer) {
      if (peer == host_) continue;
      LinkTo(peer).up = false;
      In(peer).clear();
    }
  }

  void Run() {
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      w_.Tick();
      bool worked = false;
      uint64_t wake = ~uint64_t{0};
      for (int peer = 0; peer < w_.job.hosts; ++peer) {
        if (peer == host_ || !w_.s.Alive(w_.agent_process[peer])) continue;
        worked |= Connect(peer);
        worked |= Receive(peer, &wake);
        worked |= Send(peer);
      }
      if (!worked) w_.s.Wait(ticket, wake);
    }
  }

 private:
  // What the other end is known to have; nothing is, when a connection begins.
  struct OwnerSent {
    std::vector<uint64_t> consumed;
    StepId prepared, done, rejected, phased, verdict;
    BoundaryOffer boundary, boundary_done[2];
    uint64_t prepared_ranges = 0, entered = 0;
  };
  struct Peer {
    uint64_t connection = 0;
    std::vector<std::array<StepId, 2>> step;
    std::vector<OwnerSent> owners;
    std::vector<std::optional<Values>> params;
    std::vector<std::optional<double>> norms;
    std::optional<Proposals> proposals, boundary;
    std::optional<std::vector<uint64_t>> received;  // it has told: marks of what came from here, by unit
  };

  Link& LinkTo(int peer) { return w_.links[{std::min(host_, peer), std::max(host_, peer)}]; }
  std::deque<Message>& Out(int peer) { return LinkTo(peer).queue[host_ < peer ? 0 : 1]; }
  std::deque<Message>& In(int peer) { return LinkTo(peer).queue[host_ < peer ? 1 : 0]; }

  bool Connect(int peer) {
    Link& link = LinkTo(peer);
    Peer& p = peers_[peer];
    // What a dead end had sent may still come.
    if (!link.up && !In(peer).empty() && random_.Chance(30)) return false;
    if (!link.up) {
      ++link.id;
      link.up = true;
      for (std::deque<Message>& queue : link.queue) queue.clear();
      w_.Trace(absl::StrCat("connection ", link.id, " to host ", peer));
    }
    if (p.connection == link.id) return false;
    p = Peer();
    p.connection = link.id;
    p.step.resize(w_.job.world_size);
    p.owners.resize(kMaxSlots);
    for (OwnerSent& o : p.owners) o.consumed.assign(w_.job.units.size(), ~uint64_t{0});
    p.params.resize(w_.job.blocks);
    p.norms.resize(w_.job.blocks);
    Message hello;
    for (const Inbox& inbox : m_.inbox[peer]) hello.received.push_back(inbox.received);
    Push(peer, std::move(hello));
    return true;
  }

  void Push(int peer, Message message) {
    // Nothing goes over a connection that is gone: what is pushed meanwhile was meant for the end before.
    if (!LinkTo(peer).up || LinkTo(peer).id != peers_[peer].connection) return;
    std::deque<Message>& out = Out(peer);
    const uint64_t delay = random_.Chance(50) ? 0 : random_.Below(300);
    message.ready_at = std::max(w_.s.now() + delay, out.empty() ? 0 : out.back().ready_at);
    out.push_back(std::move(message));
    w_.s.Ring();
    w_.Tick();
  }
  template <typename Put>
  void Push(int peer, Put put) {
    Message message;
    message.put = [&w = w_, put = std::move(put)](HostMemory& m) { put(w, m); };
    Push(peer, std::move(message));
  }

  bool Receive(int peer, uint64_t* wake) {
    bool worked = false;
    for (;;) {
      std::deque<Message>& in = In(peer);
      const bool begun_anew = LinkTo(peer).up && peers_[peer].connection != LinkTo(peer).id;
      if (in.empty() || begun_anew) return worked;
      if (in.front().ready_at > w_.s.now()) {
        *wake = std::min(*wake, in.front().ready_at - w_.s.now());
        return worked;
      }
      const Message message = std::move(in.front());
      in.pop_front();
      worked = true;
      if (message.put == nullptr) {
        peers_[peer].received = message.received;
        continue;
      }
      w_.putting[host_] = peer;
      message.put(m_);
      w_.putting[host_] = -1;
      w_.s.Ring();
      w_.Tick();
    }
  }

  bool Send(int peer) {
    if (!LinkTo(peer).up || peers_[peer].connection != LinkTo(peer).id) return false;
    sent_ = 0;
    SendControl(peer);
    for (int r = w_.job.Ranks().first(host_); r < w_.job.Ranks().end(host_); ++r) SendRank(peer, r);
    SendOwners(peer);
    SendSlices(peer);
    return sent_ > 0;
  }

  // Proposals are never ahead of what they name, which stands on every host before they are made.
  void SendControl(int peer) {
    if (host_ != 0) return;
    Peer& p = peers_[peer];
    const Proposals boundary = m_.boundary;
    w_.Tick();
    const Proposals proposals = m_.proposals;
    if (p.boundary == boundary && p.proposals == proposals) return;
    p.boundary = boundary;
    p.proposals = proposals;
    Mirror(peer, [=](World& w, HostMemory& m) {
      m.proposals.MergeMax(proposals);
      w.Tick();
      m.boundary.MergeMax(boundary);
    });
  }

  template <typename Put>
  void Mirror(int peer, Put put) {
    ++sent_;
    Push(peer, std::move(put));
  }

  // The marks stay here: what was delivered goes as sums, and the record says what never was.
  void SendRank(int peer, int r) {
    Peer& p = peers_[peer];
    for (int parity : {0, 1}) {
      const std::optional<TrainerStep> step = m_.ranks[r].step[parity];
      w_.Tick();
      if (!step.has_value() || step->id == p.step[r][parity]) continue;
      p.step[r][parity] = step->id;
      Mirror(peer, [=](World& w, HostMemory& m) {
        if (m.ranks[r].step[parity].has_value() && m.ranks[r].step[parity]->id == step->id) return;
        m.ranks[r].step[parity].reset();
        w.Tick();
        m.ranks[r].step[parity] = step;
      });
    }
  }

  // What comes later in a step is read first: a copy that has it also has everything before it.
  OwnerRecords CopyOf(const OwnerRecords& o) {
    OwnerRecords c;
    c.entered = o.entered;  // last of all, in a slot that is new
    w_.Tick();
    c.done = o.done;
    c.decided_by_done[0] = o.decided_by_done[0];
    c.decided_by_done[1] = o.decided_by_done[1];
    w_.Tick();
    c.rejected = o.rejected;
    w_.Tick();
    c.verdict = o.verdict;
    w_.Tick();
    c.phased = o.phased;
    w_.Tick();
    c.prepared = o.prepared;
    w_.Tick();
    for (int i : {0, 1}) {
      c.boundary_done[i] = o.boundary_done[i];
      w_.Tick();
    }
    c.boundary = o.boundary;
    w_.Tick();
    c.consumed = o.consumed;
    return c;
  }

  void SendOwners(int peer) {
    std::vector<std::pair<int, OwnerRecords>> pages;
    for (int m = 0; m < kMaxSlots; ++m) {
      if (w_.job.HostOfSlot(m) == host_) pages.emplace_back(m, CopyOf(m_.owners[m]));
    }
    // What stands in the blocks now is at least what the copies speak of.
    if (w_.bug != Bug::kDoneBeforeBlocks) SendBlocks(peer);
    for (const auto& [slot, page] : pages) SendPage(peer, slot, page);
    if (w_.bug == Bug::kDoneBeforeBlocks) SendBlocks(peer);
  }

  void SendBlocks(int peer) {
    Peer& p = peers_[peer];
    if (!w_.job.SameGroup(peer, host_)) return;  // it has owners of its own
    for (int b = 0; b < w_.job.blocks; ++b) {
      if (!w_.job.Holds(host_, b)) continue;
      const Values param = m_.planes[b].param;
      const double norm = m_.norms[b];
      w_.Tick();
      if (p.norms[b] != norm) {
        p.norms[b] = norm;
        Mirror(peer, [=](World&, HostMemory& m) { m.norms[b] = norm; });
      }
      if (p.params[b] == param) continue;
      p.params[b] = param;
      Mirror(peer, [=](World& w, HostMemory& m) {
        for (int e = 0; e < kElements; ++e) {
          m.planes[b].param[e] = param[e];
          w.Tick();
        }
      });
    }
  }

  void SendPage(int peer, int slot, const OwnerRecords& c) {
    OwnerSent& sent = peers_[peer].owners[slot];
    const bool prepared = c.prepared.has_value() && (c.prepared->id != sent.prepared ||
                                                     c.prepared->ranges_epoch != sent.prepared_ranges);
    const bool verdict = c.verdict.has_value() && c.verdict->id != sent.verdict;
    const bool boundary = c.boundary.n > 0 && Differ(c.boundary, sent.boundary);
    const bool done[2] = {c.boundary_done[0].n > 0 && Differ(c.boundary_done[0], sent.boundary_done[0]),
                          c.boundary_done[1].n > 0 && Differ(c.boundary_done[1], sent.boundary_done[1])};
    if (c.consumed == sent.consumed && !prepared && !verdict && !boundary && !done[0] && !done[1] &&
        c.done == sent.done && c.rejected == sent.rejected && c.phased == sent.phased &&
        c.entered == sent.entered) {
      return;
    }
    sent.consumed = c.consumed;
    if (prepared) sent.prepared = c.prepared->id, sent.prepared_ranges = c.prepared->ranges_epoch;
    if (verdict) sent.verdict = c.verdict->id;
    if (boundary) sent.boundary = c.boundary;
    for (int i : {0, 1}) {
      if (done[i]) sent.boundary_done[i] = c.boundary_done[i];
    }
    sent.done = c.done, sent.rejected = c.rejected, sent.phased = c.phased, sent.entered = c.entered;
    Mirror(peer, [=](World& w, HostMemory& m) { PutPage(w, c, &m.owners[slot]); });
  }

  // A unit whose sums every slot here has stored, unless the other end has them.
  void SendSlices(int peer) {
    Peer& p = peers_[peer];
    if (!p.received.has_value()) return;
    for (size_t u = 0; u < w_.job.units.size(); ++u) {
      const BlockRange unit = w_.job.units[u].blocks;
      const std::optional<Mark> sliced = Sliced(static_cast<int>(u));
      if (!sliced.has_value() || *sliced <= Mark((*p.received)[u])) continue;
      const BlockRange share = HostShare(unit, peer, w_.job.Grid());
      std::vector<Values> values;
      for (int64_t b = share.begin; b < share.end; ++b) {
        values.push_back(m_.outbox[b]);
        w_.Tick();
      }
      (*p.received)[u] = sliced->word();
      const bool mark_first = w_.bug == Bug::kMarkBeforeSlice;
      Mirror(peer, [=, from = host_, mark = *sliced](World& w, HostMemory& m) {
        Inbox& inbox = m.inbox[from][u];
        w.Check(Mark(inbox.received) <= mark, "a RECEIVED mark goes back");
        if (mark_first) inbox.received = mark.word();
        for (size_t i = 0; i < values.size(); ++i) {
          for (int e = 0; e < kElements; ++e) {
            inbox.blocks[share.begin - unit.begin + i][e] = values[i][e];
            w.Tick();
          }
        }
        inbox.received = mark.word();
      });
      w_.Trace(absl::StrCat("sent host ", peer, " unit ", u, " of step ", sliced->id().ToString(), " parts ",
                            sliced->parts()));
    }
  }

  // How far all slots of this host have come that sum some of the unit for others.
  std::optional<Mark> Sliced(int unit) {
    const std::optional<AssignmentEntry> a = m_.Newest();
    std::optional<Mark> least;
    for (int m = 0; m < a->servers(); ++m) {
      if (a->hosts.HostOf(Slot(m)) != host_) continue;
      if (SlicedBy(w_.job.units[unit].blocks, Slot(m), a->hosts).empty()) continue;
      const Mark mark(m_.owners[m].sliced[unit]);
      if (!least.has_value() || mark < *least) least = mark;
      w_.Tick();
    }
    return least;
  }

  World& w_;
  const int host_;
  HostMemory& m_;
  Random random_;
  std::vector<Peer> peers_;
  int sent_ = 0;
};

}  // namespace

void PutPage(World& w, const OwnerRecords& c, OwnerShared* o) {
  for (size_t u = 0; u < c.consumed.size(); ++u) {
    o->consumed[u] = c.consumed[u];
    w.Tick();
  }
  // Whoever sees that an attempt is over, by REJECTED or by a boundary after it, finds its verdict.
  if (c.verdict.has_value() && !(o->verdict.has_value() && o->verdict->id == c.verdict->id)) {
    o->verdict.reset();
    w.Tick();
    o->verdict = c.verdict;
    w.Tick();
  }
  Put(w, c.boundary, &o->boundary);
  Put(w, c.boundary_done[0], &o->boundary_done[0]);
  Put(w, c.boundary_done[1], &o->boundary_done[1]);
  if (c.prepared.has_value() && !(o->prepared.has_value() && o->prepared->id == c.prepared->id &&
                                  o->prepared->ranges_epoch == c.prepared->ranges_epoch)) {
    o->prepared.reset();
    w.Tick();
    o->prepared = c.prepared;
    w.Tick();
  }
  o->phased = c.phased;
  w.Tick();
  o->rejected = c.rejected;
  w.Tick();
  const int parity = c.done.step.value() & 1;
  o->decided_by_done[parity] = c.decided_by_done[parity];
  w.Tick();
  o->done = c.done;
  w.Tick();
  o->entered = c.entered;
}

void RunAgent(World& world, int host) { Agent(world, host).Run(); }

void RunNetwork(World& world) {
  Random random(Random::Mix(world.job.seed ^ 0x4E7));
  for (int cuts = random.Below(5); cuts > 0 && world.job.hosts > 1; --cuts) {
    const uint64_t until = world.s.now() + 200 + random.Below(4000);
    while (world.s.now() < until) world.s.Wait(world.s.Listen(), until - world.s.now());
    auto link = world.links.begin();
    std::advance(link, random.Below(static_cast<int>(world.links.size())));
    link->second.up = false;
    for (std::deque<Message>& queue : link->second.queue) queue.clear();
    world.Trace(absl::StrCat("*** the connection of hosts ", link->first.first, " and ", link->first.second,
                             " is lost"));
    world.s.Ring();
  }
  for (;;) world.s.Wait(world.s.Listen());
}

}  // namespace sherd::sim

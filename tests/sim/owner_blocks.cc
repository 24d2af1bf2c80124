#include "tests/sim/owner_blocks.h"

#include "absl/strings/str_cat.h"

namespace sherd::sim {
namespace {

double Squares(const Values& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return sum;
}

}  // namespace

void OwnerBlocks::Copy(const Values& from, Values& to) {
  for (int e = 0; e < kElements; ++e) {
    to[e] = from[e];
    w_.Tick();
  }
}

void OwnerBlocks::Copy(const Planes& from, Planes& to) {
  Copy(from.param, to.param);
  Copy(from.momentum, to.momentum);
  to.updates = from.updates;
  w_.Tick();
}

BlockRange OwnerBlocks::Own(const UnitShape& unit, const HostMap& hosts) const {
  BlockRange own = Owned(unit.blocks, slot_, hosts);
  if (w_.bug == Bug::kOffByOnePlan && own.end < unit.blocks.end && !own.empty()) --own.end;
  return own;
}

void OwnerBlocks::Recover() {
  for (Undo& u : page_.undo) {
    RecoverSlot(
        u.apply, [&](int64_t b) { return m_.apply_stamp[b].load(); },
        [&](int64_t b, uint64_t saved) {
          w_.Trace(absl::StrCat("undoes block ", b));
          Planes& p = m_.planes[b];
          const bool moving = Mark(u.apply.mark.load()).parts() != 0;
          const bool follows = w_.job.norms && !moving && saved != kAllSaved;
          for (int e = 0; e < kElements && static_cast<uint64_t>(e) < saved; ++e) {
            (moving ? m_.grad[b] : p.param)[e] = u.planes.param[e];
            w_.Tick();
            if (!follows) p.momentum[e] = u.planes.momentum[e];
            w_.Tick();
          }
          if (moving || saved < kElements) return;  // what comes last has not changed
          p.updates = u.planes.updates;
          w_.Tick();
        });
    w_.Tick();
    RecoverSlot(
        u.reduce, [&](int64_t b) { return m_.reduce_stamp[b].load(); },
        [&](int64_t b, uint64_t saved) {
          if (saved == 0) return;
          Copy(u.grad, m_.grad[b]);
          m_.sumsq[b] = u.sumsq;
          w_.Tick();
        });
    w_.Tick();
  }
}

// The sum over this host's ranks, of one group after the other; false: none of them has anything.
bool OwnerBlocks::LocalPart(int unit, int part, StepId id, int64_t block, Values* sum) {
  const std::vector<int32_t> one = {world_size_};
  const RankMap groups(w_.job.groups.empty() ? one : w_.job.groups, world_size_);
  const RankMap here = w_.job.Ranks();
  bool any = false;
  for (int g = 0; g < groups.hosts(); ++g) {
    if (here.HostOf(Rank(groups.first(g))) != m_.host) continue;
    Values partial{};
    for (int r = groups.first(g); r < groups.end(g); ++r) {
      const RankShared::Delivery& d = m_.ranks[r].delivered[unit];
      const uint32_t parts = Mark(d.mark).PartsOf(id);
      if (parts <= static_cast<uint32_t>(part)) continue;
      if (parts != static_cast<uint32_t>(part) + 1 && w_.bug != Bug::kOverwriteStaging) {
        w_.Fail(absl::StrCat("part ", part, " of unit ", unit, " of rank ", r,
                             " was replaced before it was reduced"));
      }
      if (d.location < 0) continue;
      any = true;
      const int64_t at = block - w_.job.units[unit].blocks.begin;
      for (int e = 0; e < kElements; ++e) partial[e] += d.scale * m_.ranks[r].staging[d.location][at][e];
      w_.Tick();
    }
    for (int e = 0; e < kElements; ++e) (*sum)[e] += w_.job.Rounded(partial[e]);
  }
  return any;
}

// Over all hosts, in their order (of numbers that add up exactly: in any).
Values OwnerBlocks::PartOf(int unit, int part, StepId id, int64_t block) {
  Values sum{};
  LocalPart(unit, part, id, block, &sum);
  for (int h = 0; h < w_.job.hosts; ++h) {
    const Inbox& inbox = m_.inbox[h][unit];
    const uint32_t parts = Mark(inbox.received).PartsOf(id);
    if (h == m_.host || parts <= static_cast<uint32_t>(part)) continue;
    if (parts != static_cast<uint32_t>(part) + 1 && w_.bug != Bug::kOverwriteOutbox) {
      w_.Fail(absl::StrCat("part ", part, " of unit ", unit, " of host ", h,
                           " was replaced before it was reduced"));
    }
    for (int e = 0; e < kElements; ++e) sum[e] += inbox.blocks[block - w_.job.units[unit].blocks.begin][e];
    w_.Tick();
  }
  return sum;
}

void OwnerBlocks::Reduce(int unit, int part, StepId id, const HostMap& hosts) {
  const Mark mark = Mark::Of(id, part + 1);
  const BlockRange own = Own(w_.job.units[unit], hosts);
  for (int64_t b = own.begin; b < own.end; ++b) {
    if (Mark(m_.reduce_stamp[b].load()) >= mark) continue;
    const Values sum = PartOf(unit, part, id, b);
    if (part == 0) {
      Copy(sum, m_.grad[b]);
      m_.sumsq[b] = Squares(m_.grad[b]);
      w_.Tick();
      m_.reduce_stamp[b] = mark.word();
      w_.Tick();
      continue;
    }
    Undo& u = NextUndo();
    JournaledMutate(
        u.reduce, m_.reduce_stamp[b], mark, b,
        [&] {
          Copy(m_.grad[b], u.grad);
          u.sumsq = m_.sumsq[b];
        },
        [&] {
          for (int i = 0; i < kElements; ++i) {
            m_.grad[b][i] += sum[i];
            w_.Tick();
          }
          m_.sumsq[b] = Squares(m_.grad[b]);
        },
        [&] { w_.Tick(); });
    w_.Tick();
  }
}

void OwnerBlocks::Slice(int unit, int part, StepId id, const HostMap& hosts) {
  const RankMap ranks = w_.job.Ranks();
  for (int r = ranks.first(m_.host); r < ranks.end(m_.host); ++r) {
    // Whoever delivered the next part saw this one consumed, or slots of other ranges had summed it: it
    // stands in the outbox, or has been sent.
    const uint32_t parts = Mark(m_.ranks[r].delivered[unit].mark).PartsOf(id);
    if (parts > static_cast<uint32_t>(part) + 1 && w_.bug != Bug::kOverwriteStaging) return;
  }
  for (const BlockRange& blocks : SlicedBy(w_.job.units[unit].blocks, slot_, hosts)) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      Values sum{};
      LocalPart(unit, part, id, b, &sum);
      Copy(sum, m_.outbox[b]);
    }
  }
}

void OwnerBlocks::MoveBlock(int64_t b, Undo& undo) {
  Values& momentum = m_.planes[b].momentum;
  Values& grad = m_.grad[b];
  const double norm = Job::Norm(m_.planes[b], grad);
  for (int e = 0; e < kElements; ++e) {
    if (w_.bug != Bug::kKeepNoGradient) undo.planes.param[e] = grad[e];
    w_.Tick();
    undo.planes.momentum[e] = momentum[e];
    w_.Tick();
    undo.apply.saved = static_cast<uint64_t>(e) + 1;
    w_.Tick();
    momentum[e] += grad[e];
    w_.Tick();
    grad[e] = momentum[e];
    w_.Tick();
  }
  m_.norms[b] = norm;
}

void OwnerBlocks::Move(const Verdict& v, const HostMap& hosts) {
  const Mark mark = Mark::JustBefore(v.id);
  for (const UnitShape& u : w_.job.units) {
    const BlockRange own = Own(u, hosts);
    for (int64_t b = own.begin; b < own.end; ++b) {
      if (!TestBit(v.has_grad, w_.job.TensorOf(static_cast<int>(b)))) continue;
      if (Mark(m_.apply_stamp[b].load()) >= mark && w_.bug != Bug::kMoveTwice) continue;
      Preserve(b, v.id.step, false);
      Undo& undo = NextUndo();
      JournaledPass(
          undo.apply, m_.apply_stamp[b], mark, b, [&] { MoveBlock(b, undo); }, [&] { w_.Tick(); });
      w_.Tick();
    }
  }
}

double OwnerBlocks::TrustOf(int64_t block) const {
  if (!w_.job.norms) return 1;
  const BlockRange blocks = w_.job.tensors[w_.job.TensorOf(static_cast<int>(block))].blocks;
  double sum = 0;
  for (int64_t b = blocks.begin; b < blocks.end; ++b) sum += m_.norms[b];
  return Job::Trust(sum);
}

// Before a block changes: what snapshots that were cut before `step` still need of it.
void OwnerBlocks::Preserve(int64_t block, Step step, bool at_boundary) {
  for (Snapshot& s : m_.snapshots) {
    if (!s.cut.has_value() || s.released || s.index[block] >= 0) continue;
    if (at_boundary ? step < *s.cut : step <= *s.cut) continue;
    s.pool.emplace_back();
    const int at = static_cast<int>(s.pool.size()) - 1;
    Planes copy;
    Copy(m_.planes[block], copy);
    s.pool[at] = copy;
    w_.Tick();
    s.index[block] = at;
    w_.Tick();
  }
}

void OwnerBlocks::CutSnapshots(uint64_t after, uint64_t last, Step step) {
  for (Snapshot& s : m_.snapshots) {
    if (s.id <= after || s.id > last || s.cut.has_value()) continue;
    s.cut = step;
    w_.Trace(absl::StrCat("snapshot ", s.id, " is cut after step ", step.value()));
    w_.Tick();
  }
}

// Before an element changes: what it was, and then that it is there.
void OwnerBlocks::SaveElement(const Planes& p, int e, Undo& undo) {
  if (e == 0) undo.planes.updates = p.updates;
  undo.planes.param[e] = p.param[e];
  w_.Tick();
  if (!w_.job.norms) undo.planes.momentum[e] = p.momentum[e];
  w_.Tick();
  undo.apply.saved = static_cast<uint64_t>(e) + 1;
  w_.Tick();
}

// `pass`: keeps what is overwritten on the way; null: it is kept already.
void OwnerBlocks::Mutate(int64_t b, const Verdict& v, bool update, const std::vector<uint64_t>& imports,
                         Undo* pass) {
  Planes& p = m_.planes[b];
  const double rate = v.groups[0][kLr] * (update ? TrustOf(b) : 1);
  for (int e = 0; e < kElements && update; ++e) {
    if (pass != nullptr && w_.bug != Bug::kLateSave) SaveElement(p, e, *pass);
    if (!w_.job.norms) p.momentum[e] += m_.grad[b][e];
    w_.Tick();
    p.param[e] -= rate * (w_.job.norms ? m_.grad[b][e] : p.momentum[e]);
    w_.Tick();
    if (pass != nullptr && w_.bug == Bug::kLateSave) SaveElement(p, e, *pass);
  }
  Overlay(b, imports);
  p.updates += 1;
}

void OwnerBlocks::Overlay(int64_t b, const std::vector<uint64_t>& imports) {
  for (uint64_t id : imports) {
    if (const auto values = w_.job.Import(id, static_cast<int>(b)); values.has_value()) {
      Copy(*values, m_.planes[b].param);
    }
  }
}

bool OwnerBlocks::Covered(int64_t b, const std::vector<uint64_t>& imports) const {
  for (uint64_t id : imports) {
    if (w_.job.Import(id, static_cast<int>(b)).has_value()) return true;
  }
  return false;
}

void OwnerBlocks::Apply(const Verdict& v, const std::vector<uint64_t>& imports, const HostMap& hosts) {
  const Mark mark = Mark::Of(v.id);
  for (const UnitShape& unit : w_.job.units) {
    const BlockRange own = Own(unit, hosts);
    for (int64_t b = own.begin; b < own.end; ++b) {
      const bool update =
          v.kind == VerdictKind::kCommit && TestBit(v.has_grad, w_.job.TensorOf(static_cast<int>(b)));
      if (!update && !Covered(b, imports)) continue;
      if (Mark(m_.apply_stamp[b].load()) >= mark && w_.bug != Bug::kApplyTwice) continue;
      if (w_.bug != Bug::kIndexAfterMutation) Preserve(b, v.id.step, false);
      Undo& u = NextUndo();
      const auto save = [&] { Copy(m_.planes[b], u.planes); };
      const auto mutate = [&] { Mutate(b, v, update, imports, nullptr); };
      const auto tick = [&] { w_.Tick(); };
      if (w_.bug == Bug::kStampBeforeMutate) {
        JournaledMutate(
            u.apply, m_.apply_stamp[b], mark, b, save, [] {}, tick);
        mutate();
      } else if (update && (!w_.job.norms || imports.empty())) {
        JournaledPass(
            u.apply, m_.apply_stamp[b], mark, b, [&] { Mutate(b, v, update, imports, &u); }, tick);
      } else {
        JournaledMutate(u.apply, m_.apply_stamp[b], mark, b, save, mutate, tick);
      }
      w_.Tick();
      if (w_.bug == Bug::kIndexAfterMutation) Preserve(b, v.id.step, false);
    }
  }
}

void OwnerBlocks::Store(const std::vector<uint64_t>& imports, const HostMap& hosts) {
  for (const UnitShape& unit : w_.job.units) {
    const BlockRange own = Own(unit, hosts);
    for (int64_t b = own.begin; b < own.end; ++b) {
      if (!Covered(b, imports)) continue;
      Preserve(b, page_.done.step, true);
      Overlay(b, imports);
    }
  }
}

}  // namespace sherd::sim

// An owner of the simulation: server/engine and server/block_work, block by block and store by store.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/step_pipeline.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

class Owner {
 public:
  Owner(World& world, Oracle& oracle, Slot slot)
      : w_(world), oracle_(oracle), slot_(slot), page_(world.owners[slot.value()]), id_(world.s.current()) {
    w_.waits_for[id_] = [this] { return pipeline_.has_value() ? pipeline_->WaitsFor() : "an assignment"; };
  }
  ~Owner() { w_.waits_for.erase(id_); }

  void Run() {
    int& holder = w_.slot_holder[slot_.value()];
    w_.Check(!w_.s.Alive(holder) || w_.bug == Bug::kAdoptAlive, "two processes act in one slot");
    holder = id_;
    w_.Trace(absl::StrCat("takes slot ", slot_.value()));
    if (w_.bug != Bug::kNoUndoOnRecovery) Recover();
    if (w_.bug == Bug::kRewritePrepared) page_.prepared.reset();
    if (w_.bug == Bug::kPhaseAgain) page_.phased = {};
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      if (EnsurePipeline()) {
        Scan();
        while (!effects_.empty()) {
          CarryOut();
          if (!EnsurePipeline()) break;
          Scan();
        }
      }
      w_.s.Wait(ticket);
    }
  }

 private:
  void Copy(const Values& from, Values& to) {
    for (int e = 0; e < kElements; ++e) {
      to[e] = from[e];
      w_.Tick();
    }
  }
  void Copy(const Planes& from, Planes& to) {
    Copy(from.param, to.param);
    Copy(from.momentum, to.momentum);
    to.updates = from.updates;
    w_.Tick();
  }

  void Recover() {
    for (Undo& u : page_.undo) {
      RecoverSlot(
          u.apply, [&](int64_t b) { return w_.apply_stamp[b].load(); },
          [&](int64_t b) {
            w_.Trace(absl::StrCat("undoes block ", b));
            Copy(u.planes, w_.planes[b]);
          });
      w_.Tick();
      RecoverSlot(
          u.reduce, [&](int64_t b) { return w_.reduce_stamp[b].load(); },
          [&](int64_t b) {
            Copy(u.grad, w_.grad[b]);
            w_.sumsq[b] = u.sumsq;
            w_.Tick();
          });
      w_.Tick();
    }
  }

  std::optional<AssignmentEntry> FindAssignment() {
    std::optional<AssignmentEntry> a = w_.AssignmentFor(page_.done.step.Next());
    const auto mine = [&](const std::optional<AssignmentEntry>& x) {
      return x.has_value() && slot_.value() < x->servers;
    };
    if (!mine(a)) a = w_.Newest();
    if (!mine(a)) return std::nullopt;
    const std::optional<AssignmentEntry> previous = w_.BeforeEpoch(a->epoch);
    if (page_.done.step >= *a->from) return a;
    if (previous.has_value() && w_.LeastDone(*previous).step.Next() < *a->from && w_.bug != Bug::kNoBarrier) {
      return mine(previous) ? previous : std::nullopt;
    }
    if (!mine(previous) && slot_.value() != 0 && page_.entered != a->epoch) Enter(*a);
    return a;
  }

  // Stands where slot 0 stands, which is in every assignment.
  void Enter(const AssignmentEntry& a) {
    if (w_.bug != Bug::kWrongStart || a.epoch == 1) {
      const OwnerShared& first = w_.owners[0];
      for (int parity = 0; parity < 2; ++parity) {
        page_.boundary_done[parity] = first.boundary_done[parity];
        w_.Tick();
      }
      page_.rejected = first.rejected;
      w_.Tick();
      const int parity = first.done.step.value() & 1;
      page_.decided_by_done[parity] = first.decided_by_done[parity];
      w_.Tick();
      page_.done = first.done;
      w_.Tick();
    }
    page_.entered = a.epoch;
    w_.Trace(absl::StrCat("enters ranges ", a.epoch, " after step ", page_.done.ToString()));
    w_.s.Ring();
    w_.Tick();
  }

  bool EnsurePipeline() {
    if (pipeline_.has_value()) return true;
    const std::optional<AssignmentEntry> a = FindAssignment();
    if (!a.has_value()) return false;
    assignment_ = *a;
    StepPipeline::Config config{w_.job.world_size, a->servers, slot_, a->epoch, {}, w_.job.loss_scale};
    for (const UnitShape& u : w_.job.units) {
      config.owns.push_back(!Owned(u.blocks, slot_, a->servers).empty());
    }
    config.pre_update = w_.job.norms;
    const uint8_t attempts = page_.rejected.step == page_.done.step.Next() ? page_.rejected.attempt + 1 : 0;
    pipeline_.emplace(std::move(config), page_.done, page_.Decided(), attempts);
    effects_.clear();
    w_.Trace(absl::StrCat("stands before step ", pipeline_->current().ToString(), " in ranges ", a->epoch));
    return true;
  }

  void Scan() {
    const StepId id = pipeline_->current();
    for (int r = 0; r < w_.job.world_size; ++r) {
      const RankShared& rank = w_.ranks[r];
      // The record first: with it, all marks of the step are seen.
      const std::optional<TrainerStep>& record = rank.step[id.step.value() & 1];
      const bool step = record.has_value() && record->id == id;
      w_.Tick();
      for (size_t u = 0; u < rank.delivered.size(); ++u) {
        pipeline_->OnDelivered(Rank(r), static_cast<int>(u), Mark(rank.delivered[u].mark), &effects_);
      }
      w_.Tick();
      if (step && record.has_value()) pipeline_->OnTrainerStep(Rank(r), *record, &effects_);
    }
    for (int m = 0; m < assignment_.servers; ++m) ShowOwner(Slot(m));
    pipeline_->OnProposals(w_.boundary, &effects_);
  }

  void ShowOwner(Slot slot) {
    const OwnerShared& o = w_.owners[slot.value()];
    OwnerPage page;
    if (o.prepared.has_value() && o.prepared->id == pipeline_->current()) page.prepared = o.prepared;
    w_.Tick();
    page.boundary = o.boundary;
    w_.Tick();
    page.boundary_done = o.BoundaryDone();
    w_.Tick();
    page.done = o.done;
    w_.Tick();
    page.phased = o.phased;
    pipeline_->OnOwner(slot, page, &effects_);
  }

  void CarryOut() {
    std::vector<Effect> effects;
    effects.swap(effects_);
    for (const Effect& e : effects) {
      switch (e.kind) {
        case Effect::kReduce:
          Reduce(e);
          break;
        case Effect::kPrepare:
          Prepare(e.id);
          break;
        case Effect::kPreUpdate:
          PreUpdate(e.id);
          break;
        case Effect::kStoreVerdict:
          StoreVerdict();
          break;
        case Effect::kApply:
          Apply();
          break;
        case Effect::kPublishDone:
          PublishDone(e.id);
          break;
        case Effect::kPublishBoundary:
          PublishBoundary(e);
          break;
        case Effect::kDecideBoundary:
          DecideBoundary(e);
          break;
        case Effect::kChangeRanges:
          return ChangeRanges(e);
      }
      w_.Tick();
      if (!pipeline_.has_value()) return;
    }
  }

  // What the ranks that delivered this part sent for a block.
  Values PartOf(int unit, int part, StepId id, int64_t block) {
    Values sum{};
    for (int r = 0; r < w_.job.world_size; ++r) {
      const RankShared::Delivery& d = w_.ranks[r].delivered[unit];
      const uint32_t parts = Mark(d.mark).PartsOf(id);
      if (parts <= static_cast<uint32_t>(part)) continue;
      if (parts != static_cast<uint32_t>(part) + 1 && w_.bug != Bug::kOverwriteStaging) {
        w_.Fail(absl::StrCat("part ", part, " of unit ", unit, " of rank ", r,
                             " was replaced before it was reduced"));
      }
      if (d.location < 0) continue;
      const int64_t at = block - w_.job.units[unit].blocks.begin;
      for (int e = 0; e < kElements; ++e) sum[e] += d.scale * w_.ranks[r].staging[d.location][at][e];
      w_.Tick();
    }
    return sum;
  }

  static double Squares(const Values& v) {
    double sum = 0;
    for (double x : v) sum += x * x;
    return sum;
  }

  void Reduce(const Effect& e) {
    const Mark mark = Mark::Of(e.id, e.part + 1);
    const BlockRange own = Owned(w_.job.units[e.unit].blocks, slot_, assignment_.servers);
    for (int64_t b = own.begin; b < own.end; ++b) {
      if (Mark(w_.reduce_stamp[b].load()) >= mark) continue;
      const Values part = PartOf(e.unit, e.part, e.id, b);
      if (e.part == 0) {
        Copy(part, w_.grad[b]);
        w_.sumsq[b] = Squares(w_.grad[b]);
        w_.Tick();
        w_.reduce_stamp[b] = mark.word();
        w_.Tick();
        continue;
      }
      Undo& u = NextUndo();
      JournaledMutate(
          u.reduce, w_.reduce_stamp[b], mark, b,
          [&] {
            Copy(w_.grad[b], u.grad);
            u.sumsq = w_.sumsq[b];
          },
          [&] {
            for (int i = 0; i < kElements; ++i) {
              w_.grad[b][i] += part[i];
              w_.Tick();
            }
            w_.sumsq[b] = Squares(w_.grad[b]);
          },
          [&] { w_.Tick(); });
      w_.Tick();
    }
    w_.Trace(absl::StrCat("reduced unit ", e.unit, " part ", e.part, " of step ", e.id.ToString()));
    if (Mark(page_.consumed[e.unit]) < mark) page_.consumed[e.unit] = mark.word();
    w_.s.Ring();
    w_.Tick();
    pipeline_->OnReduced(e.unit, &effects_);
    const bool prepared = page_.prepared.has_value() && page_.prepared->id == e.id;
    if (w_.bug == Bug::kPrepareEarly && effects_.empty() && !prepared) Prepare(e.id);
  }

  Undo& NextUndo() { return page_.undo[turn_ ^= 1]; }

  void Prepare(StepId id) {
    OwnerPrepared p;
    p.id = id;
    p.ranges_epoch = assignment_.epoch;
    std::vector<uint64_t> has_grad(1, 0);
    for (int r = 0; r < w_.job.world_size; ++r) {
      if (pipeline_->step(Rank(r)).has_value()) has_grad[0] |= pipeline_->step(Rank(r))->has_grad[0];
    }
    for (const UnitShape& u : w_.job.units) {
      const BlockRange own = Owned(u.blocks, slot_, assignment_.servers);
      for (int64_t b = own.begin; b < own.end; ++b) {
        if (TestBit(has_grad, w_.job.TensorOf(static_cast<int>(b)))) p.sum_squares.Add(w_.sumsq[b]);
      }
    }
    p.proposals.ranges = w_.proposals.ranges;
    w_.Tick();
    p.proposals.snapshot = w_.proposals.snapshot;
    w_.Tick();
    p.proposals.import = w_.proposals.import;
    page_.prepared.reset();
    w_.Tick();
    page_.prepared = p;
    w_.Trace(absl::StrCat("PREPARED ", id.ToString()));
    w_.s.Ring();
    ShowOwner(slot_);
  }

  void PreUpdate(StepId id) {
    const Verdict& v = pipeline_->verdict();
    if (w_.bug == Bug::kPhasedEarly) page_.phased = id;
    for (const UnitShape& u : w_.job.units) {
      const BlockRange own = Owned(u.blocks, slot_, assignment_.servers);
      for (int64_t b = own.begin; b < own.end; ++b) {
        if (!TestBit(v.has_grad, w_.job.TensorOf(static_cast<int>(b)))) continue;
        w_.Tick();
        w_.norms[b] = Job::Norm(w_.planes[b], w_.grad[b]);
      }
    }
    w_.Tick();
    page_.phased = id;
    w_.Trace(absl::StrCat("PHASED ", id.ToString()));
    w_.s.Ring();
    ShowOwner(slot_);
  }

  double TrustOf(int64_t block) const {
    if (!w_.job.norms) return 1;
    const BlockRange blocks = w_.job.tensors[w_.job.TensorOf(static_cast<int>(block))].blocks;
    double sum = 0;
    for (int64_t b = blocks.begin; b < blocks.end; ++b) sum += w_.norms[b];
    return Job::Trust(sum);
  }

  void StoreVerdict() {
    const Verdict& v = pipeline_->verdict();
    decided_before_ = pipeline_->decided();
    oracle_.OnVerdict(v, decided_before_);
    page_.verdict.reset();
    w_.Tick();
    page_.verdict = v;
    w_.Trace(absl::StrCat("verdict ", static_cast<int>(v.kind), " on step ", v.id.ToString()));
    w_.Tick();
    if (v.kind != VerdictKind::kReject && v.proposals.ranges > decided_before_.ranges) {
      w_.Activate(v.proposals.ranges, v.id.step.Next());
    }
  }

  // Before a block changes: what snapshots that were cut before `step` still need of it.
  void Preserve(int64_t block, Step step, bool at_boundary) {
    for (Snapshot& s : w_.snapshots) {
      if (!s.cut.has_value() || s.released || s.index[block] >= 0) continue;
      if (at_boundary ? step < *s.cut : step <= *s.cut) continue;
      s.pool.emplace_back();
      const int at = static_cast<int>(s.pool.size()) - 1;
      Planes copy;
      Copy(w_.planes[block], copy);
      s.pool[at] = copy;
      w_.Tick();
      s.index[block] = at;
      w_.Tick();
    }
  }

  void CutSnapshots(uint64_t after, uint64_t last, Step step) {
    for (Snapshot& s : w_.snapshots) {
      if (s.id <= after || s.id > last || s.cut.has_value()) continue;
      s.cut = step;
      w_.Trace(absl::StrCat("snapshot ", s.id, " is cut after step ", step.value()));
      w_.Tick();
    }
  }

  void Mutate(int64_t b, const Verdict& v, bool update, const std::vector<uint64_t>& imports) {
    Planes& p = w_.planes[b];
    const double rate = v.groups[0][kLr] * (update ? TrustOf(b) : 1);
    for (int e = 0; e < kElements && update; ++e) {
      p.momentum[e] += w_.grad[b][e];
      w_.Tick();
      p.param[e] -= rate * p.momentum[e];
      w_.Tick();
    }
    Overlay(b, imports);
    p.updates += 1;
  }

  void Overlay(int64_t b, const std::vector<uint64_t>& imports) {
    for (uint64_t id : imports) {
      if (const auto values = w_.job.Import(id, static_cast<int>(b)); values.has_value()) {
        Copy(*values, w_.planes[b].param);
      }
    }
  }

  bool Covered(int64_t b, const std::vector<uint64_t>& imports) const {
    for (uint64_t id : imports) {
      if (w_.job.Import(id, static_cast<int>(b)).has_value()) return true;
    }
    return false;
  }

  void Apply() {
    const Verdict& v = pipeline_->verdict();
    const Mark mark = Mark::Of(v.id);
    std::vector<uint64_t> imports = v.imports;
    for (uint64_t i = decided_before_.import + 1; i <= v.proposals.import; ++i) imports.push_back(i);
    for (const UnitShape& unit : w_.job.units) {
      const BlockRange own = Owned(unit.blocks, slot_, assignment_.servers);
      for (int64_t b = own.begin; b < own.end; ++b) {
        const bool update =
            v.kind == VerdictKind::kCommit && TestBit(v.has_grad, w_.job.TensorOf(static_cast<int>(b)));
        if (!update && !Covered(b, imports)) continue;
        if (Mark(w_.apply_stamp[b].load()) >= mark) continue;
        if (w_.bug != Bug::kIndexAfterMutation) Preserve(b, v.id.step, false);
        Undo& u = NextUndo();
        const auto save = [&] { Copy(w_.planes[b], u.planes); };
        const auto mutate = [&] { Mutate(b, v, update, imports); };
        const auto tick = [&] { w_.Tick(); };
        if (w_.bug == Bug::kStampBeforeMutate) {
          JournaledMutate(
              u.apply, w_.apply_stamp[b], mark, b, save, [] {}, tick);
          mutate();
        } else {
          JournaledMutate(u.apply, w_.apply_stamp[b], mark, b, save, mutate, tick);
        }
        w_.Tick();
        if (w_.bug == Bug::kIndexAfterMutation) Preserve(b, v.id.step, false);
      }
    }
    CutSnapshots(decided_before_.snapshot, v.proposals.snapshot, v.id.step);
    w_.Tick();
    pipeline_->OnApplied(&effects_);
  }

  void PublishDone(StepId id) {
    if (pipeline_->verdict().kind == VerdictKind::kReject) {
      page_.rejected = id;
      w_.Trace(absl::StrCat("REJECTED ", id.ToString()));
    } else {
      page_.decided_by_done[id.step.value() & 1] =
          w_.bug == Bug::kDecidedNotRecorded ? decided_before_ : pipeline_->decided();
      w_.Tick();
      w_.Check(page_.done < id, "DONE goes back");
      page_.done = id;
      w_.Trace(absl::StrCat("DONE ", id.ToString()));
    }
    w_.s.Ring();
  }

  void PublishBoundary(const Effect& e) {
    Write({e.id, e.n, assignment_.epoch, pipeline_->offer()}, page_.boundary);
    w_.Trace(absl::StrCat("BOUNDARY ", e.n, " before step ", e.id.ToString()));
    w_.s.Ring();
    ShowOwner(slot_);
  }

  // Absent, word by word, present.
  void Write(const BoundaryOffer& offer, BoundaryOffer& record) {
    record.n = 0;
    w_.Tick();
    record.proposals.ranges = offer.proposals.ranges;
    w_.Tick();
    record.proposals.snapshot = offer.proposals.snapshot;
    w_.Tick();
    record.proposals.import = offer.proposals.import;
    w_.Tick();
    record = offer;
  }

  void DecideBoundary(const Effect& e) {
    const Proposals before = page_.Decided();
    Proposals decision = pipeline_->boundary_decision();
    oracle_.OnBoundary(e.id, e.n, decision, before);
    // What is cut here is cut before what is stored here.
    CutSnapshots(before.snapshot, decision.snapshot, page_.done.step);
    std::vector<uint64_t> imports;
    for (uint64_t i = before.import + 1; i <= decision.import; ++i) imports.push_back(i);
    for (const UnitShape& unit : w_.job.units) {
      const BlockRange own = Owned(unit.blocks, slot_, assignment_.servers);
      for (int64_t b = own.begin; b < own.end; ++b) {
        if (!Covered(b, imports)) continue;
        Preserve(b, page_.done.step, true);
        Overlay(b, imports);
      }
    }
    if (decision.ranges > before.ranges) {
      for (uint64_t& c : page_.consumed) {
        c = 0;
        w_.Tick();
      }
    }
    if (w_.bug == Bug::kImportTwice) decision.import = before.import;
    Write({e.id, e.n, assignment_.epoch, decision}, page_.boundary_done[e.n & 1]);
    w_.Trace(absl::StrCat("BOUNDARY_DONE ", e.n, " before step ", e.id.ToString()));
    w_.s.Ring();
    if (w_.bug == Bug::kNoBarrier && decision.ranges > before.ranges) return ChangeRanges(e);
    ShowOwner(slot_);
  }

  void ChangeRanges(const Effect& e) {
    w_.Activate(pipeline_->decided().ranges, e.id.step);
    w_.Trace(absl::StrCat("leaves ranges ", assignment_.epoch));
    pipeline_.reset();
    effects_.clear();
    w_.s.Ring();
    w_.Tick();
  }

  World& w_;
  Oracle& oracle_;
  const Slot slot_;
  OwnerShared& page_;
  const int id_;
  std::optional<StepPipeline> pipeline_;
  AssignmentEntry assignment_;
  std::vector<Effect> effects_;
  Proposals decided_before_;
  int turn_ = 0;
};

}  // namespace

void RunOwner(World& world, Oracle& oracle, Slot slot) { Owner(world, oracle, slot).Run(); }

}  // namespace sherd::sim

// An owner of the simulation: server/engine, store by store.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/slice_pipeline.h"
#include "core/step_pipeline.h"
#include "tests/sim/actors.h"
#include "tests/sim/owner_blocks.h"

namespace sherd::sim {
namespace {

class Owner {
 public:
  Owner(World& world, Oracle& oracle, int host, Slot slot)
      : w_(world),
        m_(world.memory[host]),
        oracle_(oracle),
        slot_(slot),
        page_(m_.owners[slot.value()]),
        id_(world.s.current()),
        blocks_(world, m_, slot) {
    w_.waits_for[id_] = [this] {
      if (!pipeline_.has_value()) return std::string("an assignment");
      return absl::StrCat(pipeline_->WaitsFor(), " ", slices_->WaitsFor());
    };
  }
  ~Owner() { w_.waits_for.erase(id_); }

  void Run() {
    int& holder = w_.slot_holder[slot_.value()];
    w_.Check(!w_.s.Alive(holder) || w_.bug == Bug::kAdoptAlive, "two processes act in one slot");
    holder = id_;
    w_.Trace(absl::StrCat("takes slot ", slot_.value()));
    if (w_.bug != Bug::kNoUndoOnRecovery) blocks_.Recover();
    if (w_.bug == Bug::kRewritePrepared) page_.prepared.reset();
    for (;;) {
      const uint64_t ticket = w_.s.Listen();
      if (EnsurePipeline()) {
        Scan();
        while (!effects_.empty() || (!todo_.empty() && pipeline_->open())) {
          Slices();
          CarryOut();
          if (!EnsurePipeline()) break;
          Scan();
        }
      }
      w_.s.Wait(ticket);
    }
  }

 private:
  std::optional<AssignmentEntry> FindAssignment() {
    std::optional<AssignmentEntry> a = m_.AssignmentFor(page_.done.step.Next());
    const auto mine = [&](const std::optional<AssignmentEntry>& x) {
      return x.has_value() && slot_.value() < x->servers();
    };
    if (!mine(a)) a = m_.Newest();
    if (!mine(a)) return std::nullopt;
    const std::optional<AssignmentEntry> previous = m_.BeforeEpoch(a->epoch);
    if (page_.done.step >= *a->from) return a;
    if (previous.has_value() && m_.LeastDone(*previous).step.Next() < *a->from && w_.bug != Bug::kNoBarrier) {
      return mine(previous) ? previous : std::nullopt;
    }
    if (!mine(previous) && slot_.value() != 0 && page_.entered != a->epoch) Enter(*a);
    return a;
  }

  // Stands where slot 0 stands, which is in every assignment.
  void Enter(const AssignmentEntry& a) {
    if (w_.bug != Bug::kWrongStart || a.epoch == 1) {
      const OwnerShared& first = m_.owners[0];
      page_.rejected = first.rejected;
      w_.Tick();
      for (int parity = 0; parity < 2; ++parity) {
        page_.boundary_done[parity] = first.boundary_done[parity];
        w_.Tick();
      }
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
    const std::optional<AssignmentEntry> before = m_.BeforeEpoch(a->epoch);
    if (w_.bug == Bug::kOldWorld && before.has_value()) assignment_.world_size = before->world_size;
    blocks_.SetWorld(assignment_.world_size);
    StepPipeline::Config config{assignment_.world_size, a->servers(), slot_, a->epoch, {}, w_.job.loss_scale};
    const bool alone = w_.job.hosts == 1;
    SlicePipeline::Config slices{alone ? 0 : w_.job.Ranks().first(m_.host),
                                 alone ? assignment_.world_size : w_.job.Ranks().end(m_.host),
                                 {},
                                 {}};
    for (const UnitShape& u : w_.job.units) {
      config.owns.push_back(!Owned(u.blocks, slot_, a->hosts).empty());
      slices.slices.push_back(!SlicedBy(u.blocks, slot_, a->hosts).empty());
      slices.consumers.emplace_back();
      for (int m = 0; m < a->servers(); ++m) {
        const bool owns = !Owned(u.blocks, Slot(m), a->hosts).empty();
        if (owns && a->hosts.HostOf(Slot(m)) != m_.host) slices.consumers.back().push_back(m);
      }
    }
    config.pre_update = w_.job.norms;
    if (w_.job.hosts > 1) config.host_ranks = w_.job.groups;
    config.host = m_.host;
    const StepId rejected = page_.Rejected();
    const uint8_t attempts = rejected.step == page_.done.step.Next() ? rejected.attempt + 1 : 0;
    pipeline_.emplace(std::move(config), page_.done, page_.Decided(), attempts);
    slices_.emplace(std::move(slices), pipeline_->current());
    effects_.clear();
    todo_.clear();
    w_.Trace(absl::StrCat("stands before step ", pipeline_->current().ToString(), " in ranges ", a->epoch));
    return true;
  }

  void Scan() {
    const StepId id = pipeline_->current();
    slices_->Begin(id);
    for (size_t u = 0; u < page_.sliced.size(); ++u) {
      slices_->OnOwn(static_cast<int>(u), Mark(page_.sliced[u]));
    }
    // First: with it, all that was there before it is seen.
    const std::vector<uint64_t> cut = m_.cut;
    w_.Tick();
    for (int r = 0; r < assignment_.world_size; ++r) {
      const RankShared& rank = m_.ranks[r];
      // The record first: with it, all marks of the step are seen.
      const std::optional<TrainerStep>& record = rank.step[id.step.value() & 1];
      const bool step = record.has_value() && record->id == id;
      w_.Tick();
      for (size_t u = 0; u < rank.delivered.size(); ++u) {
        pipeline_->OnDelivered(Rank(r), static_cast<int>(u), Mark(rank.delivered[u].mark), &effects_);
        slices_->OnDelivered(Rank(r), static_cast<int>(u), Mark(rank.delivered[u].mark), &todo_);
      }
      w_.Tick();
      if (!step || !record.has_value()) continue;
      pipeline_->OnTrainerStep(Rank(r), *record, &effects_);
      slices_->OnTrainerStep(Rank(r), *record, &todo_);
    }
    ScanInbox(id);
    for (int m = 0; m < assignment_.servers(); ++m) ShowOwner(Slot(m));
    for (int h = 0; h < w_.job.hosts; ++h) {
      if (cut[h] != 0 && w_.job.hosts > 1) pipeline_->OnCut(h, Mark(cut[h]).id(), &effects_);
    }
    pipeline_->OnProposals(m_.boundary, &effects_);
  }

  void ScanInbox(StepId id) {
    for (int h = 0; h < w_.job.hosts; ++h) {
      for (size_t u = 0; u < w_.job.units.size() && h != m_.host; ++u) {
        Mark received(m_.inbox[h][u].received);
        if (w_.bug == Bug::kOldSlice) received = Mark::Of(id, received.parts());
        pipeline_->OnReceived(h, static_cast<int>(u), received, &effects_);
      }
    }
    for (int m = 0; m < assignment_.servers(); ++m) {
      w_.Tick();
      for (size_t u = 0; u < w_.job.units.size(); ++u) {
        Mark consumed(m_.owners[m].consumed[u]);
        if (w_.bug == Bug::kOverwriteOutbox) consumed = Mark::Of(id, 100);
        slices_->OnConsumed(Slot(m), static_cast<int>(u), consumed, &todo_);
      }
    }
  }

  void Slices() {
    if (!pipeline_->open()) return;
    std::vector<SliceOrder> todo;
    todo.swap(todo_);
    for (const SliceOrder& s : todo) {
      if (s.id != pipeline_->current()) continue;
      blocks_.Slice(s.unit, s.part, s.id, assignment_.hosts);
      const Mark mark = Mark::Of(s.id, s.part + 1);
      if (Mark(page_.sliced[s.unit]) < mark) page_.sliced[s.unit] = mark.word();
      w_.Trace(absl::StrCat("SLICED unit ", s.unit, " part ", s.part, " of step ", s.id.ToString()));
      w_.s.Ring();
      w_.Tick();
      slices_->OnSliced(s.unit, &todo_);
    }
  }

  void ShowOwner(Slot slot) {
    const OwnerShared& o = m_.owners[slot.value()];
    OwnerPage page;
    if (o.prepared.has_value() && o.prepared->id == pipeline_->current()) page.prepared = o.prepared;
    const OwnerShared& me = m_.owners[slot_.value()];
    if (w_.bug == Bug::kVerdictEarly && me.prepared.has_value() && me.prepared->id == pipeline_->current()) {
      page.prepared = me.prepared;
    }
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

  void Reduce(const Effect& e) {
    const Mark mark = Mark::Of(e.id, e.part + 1);
    blocks_.Reduce(e.unit, e.part, e.id, assignment_.hosts);
    w_.Trace(absl::StrCat("reduced unit ", e.unit, " part ", e.part, " of step ", e.id.ToString()));
    if (Mark(page_.consumed[e.unit]) < mark) page_.consumed[e.unit] = mark.word();
    w_.s.Ring();
    w_.Tick();
    pipeline_->OnReduced(e.unit, &effects_);
    const bool prepared = page_.prepared.has_value() && page_.prepared->id == e.id;
    if (w_.bug == Bug::kPrepareEarly && effects_.empty() && !prepared) Prepare(e.id);
  }

  void Prepare(StepId id) {
    OwnerPrepared p;
    p.id = id;
    p.ranges_epoch = assignment_.epoch;
    std::vector<uint64_t> has_grad(1, 0);
    for (int r = 0; r < assignment_.world_size; ++r) {
      if (pipeline_->step(Rank(r)).has_value()) has_grad[0] |= pipeline_->step(Rank(r))->has_grad[0];
    }
    p.given_up = pipeline_->given_up();
    // Each block once, whoever else holds it.
    const bool counts = w_.job.Grid().GroupOf(m_.host) == 0 || w_.bug == Bug::kCountedTwice;
    for (const UnitShape& u : w_.job.units) {
      if (!counts || p.given_up) break;
      const BlockRange own = Owned(u.blocks, slot_, assignment_.hosts);
      for (int64_t b = own.begin; b < own.end; ++b) {
        if (TestBit(has_grad, w_.job.TensorOf(static_cast<int>(b)))) p.sum_squares.Add(m_.sumsq[b]);
      }
    }
    p.proposals.ranges = m_.proposals.ranges;
    w_.Tick();
    p.proposals.snapshot = m_.proposals.snapshot;
    w_.Tick();
    p.proposals.import = m_.proposals.import;
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
    blocks_.Move(v, assignment_.hosts);
    page_.phased = id;
    w_.Trace(absl::StrCat("PHASED ", id.ToString()));
    w_.s.Ring();
    ShowOwner(slot_);
  }

  void StoreVerdict() {
    const Verdict& v = pipeline_->verdict();
    decided_before_ = pipeline_->decided();
    oracle_.OnVerdict(m_.host, v, decided_before_);
    if (v.kind == VerdictKind::kGivenUp)
      return w_.Trace(absl::StrCat("step ", v.id.ToString(), " is given up"));
    page_.verdict.reset();
    w_.Tick();
    page_.verdict = v;
    w_.Trace(absl::StrCat("verdict ", static_cast<int>(v.kind), " on step ", v.id.ToString()));
    w_.Tick();
    if (!IsRepeated(v.kind) && v.proposals.ranges > decided_before_.ranges) {
      m_.Activate(v.proposals.ranges, v.id.step.Next());
    }
  }

  void Apply() {
    const Verdict& v = pipeline_->verdict();
    std::vector<uint64_t> imports = v.imports;
    for (uint64_t i = decided_before_.import + 1; i <= v.proposals.import; ++i) imports.push_back(i);
    blocks_.Apply(v, imports, assignment_.hosts);
    const uint64_t seen = w_.bug == Bug::kCutAtSight ? m_.proposals.snapshot : 0;
    blocks_.CutSnapshots(decided_before_.snapshot, std::max(seen, v.proposals.snapshot), v.id.step);
    w_.Tick();
    pipeline_->OnApplied(&effects_);
  }

  void PublishDone(StepId id) {
    if (IsRepeated(pipeline_->verdict().kind)) {
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
    oracle_.OnBoundary(m_.host, e.id, e.n, decision, before);
    // What is cut here is cut before what is stored here.
    blocks_.CutSnapshots(before.snapshot, decision.snapshot, page_.done.step);
    std::vector<uint64_t> imports;
    for (uint64_t i = before.import + 1; i <= decision.import; ++i) imports.push_back(i);
    blocks_.Store(imports, assignment_.hosts);
    StepId stands_before = e.id;
    if (decision.ranges > before.ranges) {
      for (std::vector<uint64_t>* marks : {&page_.consumed, &page_.sliced}) {
        for (uint64_t& mark : *marks) {
          mark = 0;
          w_.Tick();
        }
      }
      const auto next = std::find_if(m_.assignments.begin(), m_.assignments.end(),
                                     [&](const AssignmentEntry& a) { return a.epoch == decision.ranges; });
      if (next->world_size != assignment_.world_size && w_.bug != Bug::kKeepAttempt) {
        stands_before = e.id.NextAttempt();
        w_.Trace(absl::StrCat("gives up step ", e.id.ToString()));
      }
      if (w_.bug == Bug::kGiveUpInTwo && stands_before != e.id) {
        page_.rejected = e.id;
        stands_before = e.id;
        w_.Tick();
      }
    }
    if (w_.bug == Bug::kImportTwice) decision.import = before.import;
    Write({stands_before, e.n, assignment_.epoch, decision}, page_.boundary_done[e.n & 1]);
    w_.Trace(absl::StrCat("BOUNDARY_DONE ", e.n, " before step ", e.id.ToString()));
    w_.s.Ring();
    if (w_.bug == Bug::kNoBarrier && decision.ranges > before.ranges) return ChangeRanges(e);
    ShowOwner(slot_);
  }

  void ChangeRanges(const Effect& e) {
    m_.Activate(pipeline_->decided().ranges, e.id.step);
    w_.Trace(absl::StrCat("leaves ranges ", assignment_.epoch));
    pipeline_.reset();
    effects_.clear();
    w_.s.Ring();
    w_.Tick();
  }

  World& w_;
  HostMemory& m_;
  Oracle& oracle_;
  const Slot slot_;
  OwnerShared& page_;
  const int id_;
  OwnerBlocks blocks_;
  std::optional<StepPipeline> pipeline_;
  std::optional<SlicePipeline> slices_;
  std::vector<SliceOrder> todo_;
  AssignmentEntry assignment_;
  std::vector<Effect> effects_;
  Proposals decided_before_;
};

}  // namespace

void RunOwner(World& world, Oracle& oracle, int host, Slot slot) { Owner(world, oracle, host, slot).Run(); }

}  // namespace sherd::sim

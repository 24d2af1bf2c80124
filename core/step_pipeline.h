// One owner's side of the step protocol, as a state machine without I/O, clock or threads (DESIGN.md, the
// life of a step). The server's engine and the simulator drive the same code: they show it what stands in the
// shared records and carry out the effects it returns.
//
//   StepPipeline p(config, done, decided);
//   std::vector<Effect> todo;
//   p.OnOwner(own_slot, page, &todo);        // first: what stands in the own page
//   p.OnDelivered(rank, unit, mark, &todo);  // -> kReduce when every rank has delivered that part
//   p.OnTrainerStep(rank, record, &todo);    // -> kPrepare when all is reduced and every rank has recorded
//   STEP p.OnOwner(slot, page, &todo);            // -> kStoreVerdict + kApply when all owners are PREPARED
//                                                 // (pre_update: -> kPreUpdate, and when all are PHASED)
//   p.OnApplied(&todo);                      // -> kPublishDone; the pipeline stands in the next step
//
// A successor of a dead owner builds a fresh pipeline at the step after its slot's DONE and shows it all
// records, its own slot's included: what was published is kept, everything else is asked for again, and
// carrying it out again is harmless because blocks are stamped (core/block_journal.h). Until the own page was
// shown nothing is asked for: a predecessor may have come further than the records of others tell.
//
// When what was decided changes the ranges, the pipeline closes: it asks for nothing more but kChangeRanges,
// once every owner of these ranges has left the step (and boundary) behind, so that a block never has two
// owners at work.
//
// On several hosts (Config::host_ranks) what the ranks of another host delivered comes as that host's partial
// sum, which OnReceived announces; their marks and STEP records are seen as everybody's, and say whether one
// is to come.
//
// A host that is lost with its memory is followed by another, which gives the step in hand up in the name of
// its owners (core/host_takeover.h). Then every owner prepares without its gradients, and the verdict is that
// the step is computed again.
//
// Thread-compatible.
#ifndef SHERD_CORE_STEP_PIPELINE_H_
#define SHERD_CORE_STEP_PIPELINE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/host_map.h"
#include "core/step_records.h"

namespace sherd {

struct Effect {
  enum Kind : uint8_t {
    kReduce,     // sum part `part` of `unit` over the ranks that delivered it (of other hosts: their partial
                 // sums, where one was received); then OnReduced
    kPrepare,    // publish PREPARED{id, exact sum of own block norms, proposals read now}; then OnOwner(own
                 // slot)
    kPreUpdate,  // the step will be committed: compute what updates of whole tensors need, publish PHASED;
                 // then OnOwner(own slot). No parameter has changed yet, nor will before all owners are
                 // PHASED: a successor that does not find it goes on with it
    kStoreVerdict,     // write `verdict()` to the own page, before anything is stored; kGivenUp: nowhere
    kApply,            // bring every own block to step `id`; then OnApplied
    kPublishDone,      // publish DONE{id} (REJECTED{id} if the verdict IsRepeated); wake the trainers if all
                       // owners have
    kPublishBoundary,  // publish BOUNDARY{id, n, ranges epoch, offer()}; then OnOwner(own slot)
    kDecideBoundary,   // all offered: carry out `boundary_decision()`, publish BOUNDARY_DONE{id, n, ranges
                       // epoch, boundary_decision()}; then OnOwner(own slot)
    kChangeRanges,     // all owners stand before `id`, with n boundaries behind them: the assignment of
                       // `decided().ranges` is in force from `id` on; go on with a new pipeline for it
  };
  Kind kind;
  int unit = -1;
  int part = -1;
  StepId id;
  uint32_t n = 0;
};

// What stands in one owner's page, read in this order: a PREPARED next to a BOUNDARY that is not of the same
// boundary then proves that this owner will never offer it.
struct OwnerPage {
  std::optional<OwnerPrepared> prepared;  // of the step in hand
  BoundaryOffer boundary;                 // the last published
  BoundaryOffer boundary_done;            // the last carried out (its proposals do not count)
  StepId done;                            // the last step that is DONE
  StepId phased;                          // the last step that is PHASED; {0, 0}: none
};

class StepPipeline {
 public:
  struct Config {
    int world_size = 0;
    int servers = 0;
    Slot slot;
    uint64_t ranges_epoch = 0;
    std::vector<bool> owns;  // per unit: this slot owns at least one of its blocks
    LossScaleSpec loss_scale;
    bool pre_update =
        false;  // something of whole tensors stands before their updates (kernels::OptimizerInfo)
    std::vector<int32_t>
        host_ranks;  // of several hosts, by host: how many of the ranks, in order, are its; or empty
    int host = 0;    // this owner's
  };

  // Stands before the step after `done`. `decided`: what earlier verdicts and boundaries have carried out.
  // `rejected_attempts`: attempts of the step in hand that were rejected. A slot that is new in these ranges
  // first enters: its page gets DONE, BOUNDARY_DONE and REJECTED as they stand in a slot that was there.
  StepPipeline(Config config, StepId done, Proposals decided, uint8_t rejected_attempts = 0);

  // The step in hand.
  StepId current() const { return id_; }
  uint64_t ranges_epoch() const { return config_.ranges_epoch; }

  // A rank's DELIVERED mark of a unit. Marks of other steps, and repetitions, change nothing.
  void OnDelivered(Rank rank, int unit, Mark delivered, std::vector<Effect>* out);
  // The RECEIVED mark of a unit: parts whose partial sum over the ranks of another host are here.
  void OnReceived(int host, int unit, Mark received, std::vector<Effect>* out);
  // A rank's STEP record. Of another step: ignored.
  void OnTrainerStep(Rank rank, const TrainerStep& step, std::vector<Effect>* out);
  // A host was lost, and what of its records and sums of `id` is not here never comes. All that is here was
  // shown.
  void OnCut(int host, StepId id, std::vector<Effect>* out);
  // The part last asked for with kReduce has been reduced on all own blocks of the unit.
  void OnReduced(int unit, std::vector<Effect>* out);
  // An owner's page was read (the own one too, after publishing).
  void OnOwner(Slot slot, const OwnerPage& page, std::vector<Effect>* out);
  // What the coordinator proposes for verdicts, and what it allows to be decided at a boundary without
  // trainers.
  void OnProposals(const Proposals& boundary, std::vector<Effect>* out);
  // All own blocks stand at the step; nothing to apply is applied at once by the engine.
  void OnApplied(std::vector<Effect>* out);

  // Neither blind (the own page was not shown yet) nor closed: only then may anything be done by these
  // ranges, such as what core/slice_pipeline.h asks for.
  bool open() const { return own_seen_ && decided_.ranges <= config_.ranges_epoch; }

  // REQUIRES: a kPreUpdate or kStoreVerdict effect was returned for current(), and OnApplied was not called
  // since.
  const Verdict& verdict() const { return verdict_; }
  // A rank's STEP record of the step in hand, if it has been seen.
  const std::optional<TrainerStep>& step(Rank rank) const { return ranks_[rank.value()].step; }
  // Some owner gives the step in hand up (OwnerPrepared::given_up), or this one lacks what a lost host had:
  // what kPrepare publishes gives it up, too.
  bool given_up() const;
  // What a kPublishBoundary effect is to publish, and what a kDecideBoundary effect is to carry out.
  const Proposals& offer() const { return boundary_proposals_; }
  const Proposals& boundary_decision() const { return boundary_decision_; }
  const Proposals& decided() const { return decided_; }

  // Whom this owner waits for, in words: "rank 2 (gradients of unit 5)", "slot 1 (PREPARED)"; empty if for
  // nobody.
  std::string WaitsFor() const;

 private:
  enum class Phase : uint8_t { kReducing, kPreparing, kPrepared, kPhasing, kApplying };
  struct RankState {
    std::vector<uint16_t> delivered;  // per unit, parts of the step in hand
    std::optional<TrainerStep> step;
  };
  struct UnitState {
    uint16_t reduced = 0;
    bool in_hand = false;
  };

  void BeginStep(StepId id);
  // Asks for the next part of a unit if it is complete over ranks.
  void TryReduce(int unit, std::vector<Effect>* out);
  void TryPrepare(std::vector<Effect>* out);
  void TryDecide(std::vector<Effect>* out);
  void TryConclude(std::vector<Effect>* out);
  void TryBoundary(std::vector<Effect>* out);
  void TryOffer(std::vector<Effect>* out);
  void TryLeave(std::vector<Effect>* out);
  // `b` is the boundary that this owner stands before (or in).
  bool IsNext(const BoundaryOffer& b) const;
  // Boundaries between after_ and the step in hand that an owner has carried out.
  uint32_t DoneHere(const OwnerPage& o) const;
  // No owner's boundary offer stands open, or a PREPARED proves that it will never be decided.
  bool BoundaryBlocksPrepare() const;
  // Parts of a unit over all ranks; -1 while a rank without STEP record may still deliver more.
  int FinalParts(int unit) const;
  // Something of the step in hand that only a lost host had.
  bool LacksCut() const;
  // Whether the unit's part comes from another host: received, on its way (or it may yet be), or never.
  enum class FromHost : uint8_t { kHere, kMayCome, kNever };
  FromHost PartOf(int host, int unit, int part) const;

  const Config config_;
  StepId id_;
  StepId after_;  // DONE
  Phase phase_ = Phase::kReducing;
  const RankMap hosts_;
  std::vector<RankState> ranks_;
  std::vector<StepId> cut_;                      // by host; {0, 0}: none
  std::vector<std::vector<uint16_t>> received_;  // by host and unit: parts of the step in hand
  std::vector<UnitState> units_;
  int steps_seen_ = 0;
  std::vector<OwnerPage> owners_;
  Verdict verdict_;
  Proposals decided_, boundary_proposals_, boundary_decision_;
  uint32_t boundary_n_ = 1;  // the next boundary after after_
  bool boundary_offered_ = false, boundary_deciding_ = false;
  bool changing_ranges_ = false;  // a boundary that will change them waits for reduces in hand
  bool own_seen_ = false, left_ = false, phase_asked_ = false;
};

}  // namespace sherd

#endif  // SHERD_CORE_STEP_PIPELINE_H_

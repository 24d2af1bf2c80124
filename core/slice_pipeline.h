// What one slot does for the owners of other hosts, as a state machine without I/O (DESIGN.md, several
// hosts): it sums what the ranks of its own host delivered, for those blocks of each unit that the others own
// and this slot has to slice (core/host_map.h, SlicedBy). The sums go to the outbox; once every slot of the
// host has stored its SLICED mark, the host's agent sends them.
//
//   SlicePipeline p(config, StepId{Step(1), 0});
//   p.OnDelivered(rank, unit, mark, &todo);     // -> a slice, when all ranks delivered that part
//   ... sum it into the outbox, store the SLICED mark ...
//   p.OnSliced(unit, &todo);
//
// The outbox holds one part of a unit: the next one waits until the others' owners have CONSUMED it. Between
// steps nothing is to be waited for, since no owner leaves a step before all have what they need.
//
// Nothing is sliced unless the slot's StepPipeline is open(): with ranges that are about to change it would
// be less than the mark says.
//
// A successor of a dead slot builds a fresh one and shows it what stands in memory, its own SLICED marks
// first: a slice without its mark is summed again, to the same bits.
//
// Thread-compatible.
#ifndef SHERD_CORE_SLICE_PIPELINE_H_
#define SHERD_CORE_SLICE_PIPELINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/mark.h"
#include "core/step_records.h"

namespace sherd {

// Sum part `part` of `unit` over the ranks of this host that delivered it, into the outbox; store SLICED(id,
// part + 1); then OnSliced. A rank whose mark speaks of later parts shows that all of it was sent long ago:
// then nothing is to be summed.
struct SliceOrder {
  int unit = -1;
  int part = -1;
  StepId id;
};

class SlicePipeline {
 public:
  struct Config {
    int first_rank = 0, end_rank = 0;         // of this host: [first_rank, end_rank)
    std::vector<bool> slices;                 // per unit: this slot has blocks of it to slice
    std::vector<std::vector<int>> consumers;  // per unit: slots of other hosts that own some of it
  };

  // REQUIRES: config.consumers is as long as config.slices.
  SlicePipeline(Config config, StepId id);

  StepId current() const { return id_; }
  // The slot has left the step (or attempt) in hand behind and stands in another. Nothing for the same one.
  void Begin(StepId id);

  // This slot's SLICED mark of a unit, as it or a predecessor stored it.
  void OnOwn(int unit, Mark sliced);
  // Marks and records of this host's ranks; of other ranks: ignored.
  void OnDelivered(Rank rank, int unit, Mark delivered, std::vector<SliceOrder>* out);
  void OnTrainerStep(Rank rank, const TrainerStep& step, std::vector<SliceOrder>* out);
  // The CONSUMED mark of an owner on another host.
  void OnConsumed(Slot slot, int unit, Mark consumed, std::vector<SliceOrder>* out);
  // The slice last asked for of the unit stands, with its mark.
  void OnSliced(int unit, std::vector<SliceOrder>* out);

  // What a slice that could be taken waits for: "slot 3 (reduction of unit 5, step 7)"; empty: nothing.
  std::string WaitsFor() const;

 private:
  struct RankState {
    std::vector<uint16_t> delivered;  // per unit
    bool step = false;
  };
  struct UnitState {
    uint16_t sliced = 0;
    bool in_hand = false;
    std::vector<uint16_t> consumed;  // as Config::consumers
  };
  bool Delivered(int unit, int part) const;
  // The consumer that has not consumed what the outbox holds; -1: all have.
  int Behind(int unit) const;
  void TrySlice(int unit, std::vector<SliceOrder>* out);

  const Config config_;
  StepId id_;
  std::vector<RankState> ranks_;
  std::vector<UnitState> units_;
};

}  // namespace sherd

#endif  // SHERD_CORE_SLICE_PIPELINE_H_

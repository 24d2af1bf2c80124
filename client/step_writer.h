// A trainer's side of the step protocol over the job's shared memory (DESIGN.md, the life of a step).
// Torch-free, no RPC.
//
//   StepWriter w(memory, rank, options);
//   auto start = w.Resume();                       // where to go on, with the blob committed last
//   for each micro-batch: w.BeginPart(samples / nominal);
//     for each unit, as its gradients arrive:  void* to = w.Stage(unit);  copy;  w.Deliver(unit);
//     w.EndPart();                                  // units without a gradient
//   auto verdict = w.Finish(scalars..., blob);      // STEP; returns when every owner has stored the step
//
// A part that a dead predecessor delivered already is computed again but not written again: Stage returns
// null for it, and Deliver counts it.
//
// Thread-compatible. Stage and Finish block, on owners and other ranks; what they wait for is told through
// Options::on_wait.
#ifndef SHERD_CLIENT_STEP_WRITER_H_
#define SHERD_CLIENT_STEP_WRITER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/staging_places.h"
#include "core/host_map.h"
#include "core/step_records.h"
#include "runtime/job_memory.h"

namespace sherd::client {

class StepWriter {
 public:
  struct Options {
    // Wake owners as units become complete, while cores are free for them; else only when they must work.
    bool overlap = false;
    runtime::SpinPolicy spin = runtime::SpinPolicy::None();
    // Fails a wait that lasts longer.
    absl::Duration timeout = absl::InfiniteDuration();
    // Called every two seconds while a wait lasts, with whom it is for: "slot 1 (PREPARED of step 7)".
    std::function<void(absl::Duration waited, const std::string& for_whom)> on_wait;
    // Stage 2: bytes of the first staging ring; 0: twice the largest unit.
    int64_t ring_bytes = 0;
  };
  struct Start {
    StepId next;  // the step to compute
    std::string
        blob;  // committed with the step before: this rank's, or rank 0's if this one was not there yet
    bool joining = false;  // the job has not taken this rank in yet: see Join; nothing else is set then
  };

  // `memory` is opened as kTrainer and outlives this. The caller has been attached as `rank`.
  StepWriter(runtime::JobMemory* memory, Rank rank, Options options);
  ~StepWriter();

  // Takes up what the rank left: makes or maps its staging; if its last STEP record is undecided, waits until
  // it is.
  //   RESOURCE_EXHAUSTED  no room for staging
  absl::StatusOr<Start> Resume();
  // For a rank past the world of the step in hand, whose staging Resume has made: says that it is ready,
  // waits until a resize has taken it in, and goes on as Resume.
  //   CANCELLED  the resize was taken back, or the other ranks have finished: nobody wants this rank any more
  absl::StatusOr<Start> Join(uint64_t incarnation);

  StepId current() const { return id_; }
  // Ranks of the step in hand. Changes between two steps alone, and when a step is given up.
  int world_size() const { return world_size_; }
  // Micro-batches of this rank in the step in hand and those after it; JobSpec::parts unless told otherwise.
  void set_parts(int parts) { parts_of_step_ = parts; }
  // This rank is one of them. False: a resize has let it go, it has nothing more to do.
  bool in_world() const { return rank_.value() < world_size_; }
  // After ABORTED from Stage, StageAt, EndPart or Finish, which say so when the job has changed its ranks in
  // the middle of a step: stands in the next attempt of it, of which nothing is delivered.
  absl::Status StartOver();

  // Opens the next part of the step (a micro-batch, or all of them together): its gradients count with
  // `scale`.
  void BeginPart(float scale);
  // Where the gradients of `unit` go, in JobSpec::staging: its blocks, padding included and zeroed if the
  // memory was used before by something else. Null: delivered already by a predecessor. Blocks until owners
  // have consumed the unit's former part, and in stage 2 until there is room.
  absl::StatusOr<void*> Stage(int unit);
  // The cheaper way for a unit of one large tensor: gradients that are computed in staging in the first
  // place.
  //   void* p = w.Borrow(bytes);        // of a whole unit; compute the gradients there
  //   w.StageAt(unit, p);                // true: p is to `unit` what Stage returns otherwise. False: copy
  //   w.Deliver(unit);
  //   w.Return(p);                       // nobody touches the memory through p any more
  // Borrow is for any use and any number of places. Null if there is none: use other memory, then Stage. In
  // stage 2 it blocks for room as Stage does. Return is thread-safe.
  void* Borrow(int64_t bytes);
  absl::StatusOr<bool> StageAt(int unit, const void* place);
  void Return(const void* place) { places_.Return(place); }
  // Of a unit, padding included: what Borrow is asked for.
  int64_t UnitBytes(int unit) const;
  // The staged gradients of `unit` are whole; they must not be touched any more. REQUIRES: Stage(unit) in
  // this part.
  void Deliver(int unit);
  // Every unit not delivered in this part contributes nothing.
  absl::Status EndPart();
  // After the last EndPart: what is staged and delivered from here on came after its unit was delivered, and
  // adds no weight.
  void BeginLatePart(float scale);

  // Of the step in hand: what its backward multiplies the loss by, and how it came to that. All ranks have
  // the same; Finish records it and takes the next one from the verdict, Resume from the last one's.
  const LossScale& loss_scale() const { return loss_scale_; }
  // For training that goes on from a checkpoint: the state saved there. Before the first step, on every rank.
  void set_loss_scale(const LossScale& state) { loss_scale_ = state; }

  // What Finish adds to the record by itself: id, parts, loss scale.
  struct Record {
    uint64_t samples = 0;
    double weight = 0;  // sum over micro-batches of the scale their gradients counted with
    double loss = 0, max_grad_norm = 0;
    std::vector<GroupScalars> groups;
    std::vector<uint64_t> has_grad;
    std::vector<uint64_t> imports;
  };
  // Records STEP and waits until all owners have carried out the verdict. On kCommit and kSkip the writer
  // stands in the next step, on kReject in the next attempt of the same.
  // The verdict that lets this rank go may be gone by then: then loss and norm are NaN, and what else it said
  // is not known.
  //   ABORTED  the step was given up: StartOver
  absl::StatusOr<Verdict> Finish(const Record& record, absl::string_view blob);

  // Chunks of staging added because ranks waited for each other, and bytes of staging in all.
  int64_t ring_growths() const { return growths_; }
  int64_t staging_bytes() const { return staging_bytes_; }

 private:
  struct Chunk {
    uint32_t index;
    char* data;
    int64_t bytes;
  };
  bool ring() const { return memory_->spec().stage >= 2; }
  absl::Status MapStaging();
  absl::StatusOr<Chunk*> AddChunk(int64_t bytes);
  // Parts of `unit` that all owners have consumed.
  bool ConsumedByAll(int unit, Mark mark);
  void Reclaim();
  void AddPlaces(const Chunk& chunk);
  // The part of `unit` before this one is out of use; the entry that says where it lies is one per unit.
  absl::Status WaitFormerPart(int unit);
  void Stand(int unit, const StagingPlaces::Place& place);
  // Another rank has delivered something this one has not: it may be waiting for us.
  bool SomeoneAhead() const;
  bool LastToDeliver(int unit) const;
  // Says of every unit with fewer parts than that, that the missing ones are empty.
  absl::Status FillUpTo(uint32_t parts);
  absl::Status WaitConsumed(int unit, Mark mark);
  // Some of what was delivered has not been consumed.
  bool OwnersHoldPlaces() const;
  // Until `ready`, which looks at places after owners may have freed some.
  absl::Status WaitForOwners(absl::string_view what, const std::function<bool()>& ready);
  // A place for `unit`, which may be the last resort: more staging.
  absl::StatusOr<StagingPlaces::Place> WaitForRoom(int unit);
  absl::Status WaitDone(StepId id, bool* rejected);
  // Waits for this rank's bell until `ready`; names whom through on_wait.
  absl::Status WaitUntil(absl::string_view what, const std::function<bool()>& ready);
  std::string WaitsFor();
  // Whom the rank waits for that wants `unit` consumed up to `mark`.
  std::string WaitsToConsume(int unit, Mark mark);
  absl::StatusOr<std::vector<runtime::OwnerRecords*>> Owners(Step step);
  void RingOwners();
  absl::Status StandAt(StepId id);
  // A boundary that gave a step up may have decided other ranks for it: waits until they are in force, so
  // that the next attempt is shared out among them.
  absl::Status WaitForRanks(StepId id);
  // The blob committed with the step before `next`.
  std::string BlobBefore(Step next) const;
  // The step in hand was given up, everywhere.
  bool GivenUp();

  runtime::JobMemory* const memory_;
  const Rank rank_;
  const Options options_;
  runtime::RankRecords& records_;
  StepId id_;
  int world_size_ = 0;  // of id_
  int parts_of_step_;
  LossScale loss_scale_;
  float scale_ = 1;
  uint32_t part_ = 0;                // parts ended
  std::vector<uint32_t> delivered_;  // per unit: parts of id_ that stand as delivered, by us or a predecessor
  std::vector<uint32_t> counted_;    // per unit: parts that this writer has gone through
  std::vector<runtime::Delivery> where_;  // per unit: where the open part is staged
  std::vector<bool> staged_;
  std::vector<Chunk> chunks_;
  StagingPlaces places_;
  int64_t growths_ = 0, staging_bytes_ = 0;
  // First touch of the staging made by Resume, while the caller does other things.
  std::atomic<bool> stop_warming_{false};
  std::thread warming_;
  // Owners of the assignment last looked up.
  uint64_t owners_epoch_ = 0;
  HostMap owner_hosts_ = HostMap::OneHost(1);
  absl::Time waiting_since_ = absl::InfinitePast();  // in WaitUntil
  std::vector<runtime::OwnerRecords*> owners_;
};

}  // namespace sherd::client

#endif  // SHERD_CLIENT_STEP_WRITER_H_

// The records of one job as they lie in shared memory (DESIGN.md, where things lie): one page per trainer,
// one per owner.
//
//   rank.PublishDelivered(unit, Mark::Of(id, 1), {chunk, offset, scale});      // trainer
//   auto d = rank.ReadDelivery(unit);                                           // owner
//   owner.PublishPrepared(prepared);  owner.ReadPrepared(id);                   // any owner, any successor
//
// Each record has one writer. It is written first and its mark last (release); a reader that sees the mark
// sees the record. A record that a death tore has no mark and reads as absent. Nothing here blocks.
//
// What another process wrote is not trusted: counts are checked against the job's sizes before use, so a
// damaged page reads as an absent record or a wrong value, never as memory outside the page.
#ifndef SHERD_RUNTIME_RECORDS_H_
#define SHERD_RUNTIME_RECORDS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "core/block_journal.h"
#include "core/job_spec.h"
#include "core/step_pipeline.h"
#include "core/step_records.h"

namespace sherd::runtime {

inline constexpr int kMaxSlots = 64;        // owners of one job on this host
inline constexpr int kMaxWorkers = 16;      // threads of one owner that mutate blocks
inline constexpr int kMaxStepImports = 16;  // imports a rank may name in one STEP record

// Parameter groups of a job, at least 1.
int GroupCount(const JobSpec& spec);
// The area that holds the job's buffers one after another, each at a multiple of 8: its size, and where one
// begins.
inline int64_t BufferOffset(const JobSpec& spec, int index) {
  int64_t at = 0;
  for (int i = 0; i < index; ++i) at += (BufferBytes(spec.buffers[i]) + 7) / 8 * 8;
  return at;
}
inline int64_t BufferArea(const JobSpec& spec) {
  return BufferOffset(spec, static_cast<int>(spec.buffers.size()));
}

// Where a delivered unit lies in its rank's staging.
struct Delivery {
  static constexpr uint32_t kEmpty = ~uint32_t{0};
  uint32_t chunk = kEmpty;  // staging segment staging.<r>.<chunk>; kEmpty: this rank contributes nothing
  uint64_t offset = 0;      // bytes, multiple of 64
  float scale = 1;          // samples of this part / nominal samples
};

// A trainer's page: segment rank.<r>.
class RankRecords {
 public:
  static int64_t BytesFor(const JobSpec& spec);
  RankRecords() = default;
  // `memory`: BytesFor(spec) bytes, 64-byte aligned, zero when new; must outlive this. `spec` too.
  RankRecords(const JobSpec* spec, char* memory);

  // DELIVERED.
  void PublishDelivered(int unit, Mark mark, const Delivery& delivery);
  Mark Delivered(int unit) const;
  // The delivery that the present mark speaks of. Stable until the owners have consumed it.
  Delivery ReadDelivery(int unit) const;
  // The mark up to which this rank waits for owners to consume the unit; 0 while it does not. For those who
  // watch: nothing is decided by it.
  std::atomic<uint64_t>& Wanted(int unit) const;

  // Stage 3 on a host of several: a UnitWant. Written by this rank, for its host's agent.
  std::atomic<uint64_t>& Gather(int unit) const;
  // UnitWant::turn, stored before it.
  std::atomic<uint64_t>& GatherTurn(int unit) const;

  // STEP, with the blob that is committed with it. INVALID_ARGUMENT: a blob, or number of groups or imports,
  // past the job's sizes.
  absl::Status PublishStep(const TrainerStep& step, absl::string_view blob);
  // The record of that step, any attempt; nullopt if there is none (not yet, torn, or overwritten by step +
  // 2).
  std::optional<TrainerStep> ReadStep(Step step) const;
  // Only whether it is there, and of which attempt: cheap.
  std::optional<StepId> HasStep(Step step) const;
  std::string ReadBlob(Step step) const;

  // The STEP record of that step, with blob and buffers, for the page of this rank on another host; empty if
  // there is none. PutStep writes it there, the mark last, unless it stands there already. False: it is not
  // of this job.
  std::string CopyStep(Step step) const;
  bool PutStep(absl::string_view copy);
  // Of which step a copy is; 0: of none.
  static Step StepOf(absl::string_view copy);
  // Marks of the two records that stand here, by parity of the step; 0: none.
  std::array<Mark, 2> StepMarks() const;
  // Buffers travelling with the step (rank 0). Write before PublishStep. Step 0: initial values.
  absl::Span<char> buffers(Step step) const;

 private:
  struct Entry;
  struct StepHeader;
  Entry* entry(int unit) const;
  StepHeader* header(Step step) const;

  const JobSpec* spec_ = nullptr;
  char* base_ = nullptr;
  int64_t entries_at_ = 0, steps_at_ = 0, step_bytes_ = 0;
  int64_t groups_at_ = 0, parts_at_ = 0, bits_at_ = 0, blob_at_ = 0, buffers_at_ = 0;  // within a step record
};

// One worker's undo area in its owner's page.
struct WorkerUndo {
  JournalSlot* apply = nullptr;
  float* apply_planes = nullptr;  // param, then the optimizer's planes: kBlockElements each
  JournalSlot* reduce = nullptr;
  float* reduce_block = nullptr;
  double* reduce_sumsq = nullptr;
};

// An owner's page: segment owner.<m>.
class OwnerRecords {
 public:
  static int64_t BytesFor(const JobSpec& spec);
  OwnerRecords() = default;
  OwnerRecords(const JobSpec* spec, char* memory);

  // CONSUMED: parts of this unit that no longer need their staging.
  std::atomic<uint64_t>& Consumed(int unit) const;
  // SLICED: parts of this unit of which this owner's share of the sums for other hosts stands in the outbox.
  std::atomic<uint64_t>& Sliced(int unit) const;
  // The mark of the last part of this unit to which no rank of this host contributed: nothing stands in the
  // outbox. Written before Sliced.
  std::atomic<uint64_t>& SlicedNothing(int unit) const;
  // Rises whenever own parameters of this unit have changed, before DONE or BOUNDARY_DONE say so: what other
  // hosts have to be sent.
  std::atomic<uint64_t>& Changed(int unit) const;

  // DONE: this owner has stored all of `id`; `decided` is what verdicts have carried out up to it.
  void PublishDone(StepId id, const Proposals& decided);
  StepId Done() const;
  // Proposals carried out up to DONE and the boundaries after it.
  Proposals Decided() const;
  // The last rejected step; {0, 0} if none. A boundary carried out before an attempt rejects the one before
  // it.
  void PublishRejected(StepId id);
  StepId Rejected() const;
  // Where a job begins: as if `done` (step 0, or a checkpoint's) had been done here, with `decided` carried
  // out.
  void Begin(StepId done, const Proposals& decided) { PublishDone(done, decided); }
  // Lets this slot enter an assignment where `other` stands, which was there before: takes over its DONE,
  // boundaries and rejections. Once per assignment (Entered); a death in the middle is repaired by repeating
  // it.
  void EnterFrom(const OwnerRecords& other, uint64_t ranges_epoch);
  uint64_t Entered() const;

  // How this owner changed over to an assignment: when it had done its last step under the one before (0: it
  // was not there, or its process is a successor's) and when it was ready for the next, in CLOCK_MONOTONIC
  // nanoseconds. For reports only.
  struct RangesChange {
    uint64_t ranges_epoch = 0;
    int64_t closed_ns = 0, opened_ns = 0;
  };
  void SetRangesChange(const RangesChange& change);
  RangesChange ReadRangesChange() const;

  void PublishPrepared(const OwnerPrepared& prepared);
  std::optional<OwnerPrepared> ReadPrepared(StepId id) const;
  // PHASED: what the update of `id` needs of whole tensors stands in JobMemory::block_norms for own blocks.
  void PublishPhased(StepId id);
  StepId Phased() const;
  void PublishBoundary(const BoundaryOffer& offer);
  // A boundary that gives the step in hand up is carried out before its next attempt: `done.before` says so,
  // in the same store (a death between two would leave an owner that can neither finish nor repeat it).
  void PublishBoundaryDone(const BoundaryOffer& done);
  // Everything a pipeline looks at, in the order it relies on.
  OwnerPage ReadPage(StepId current) const;

  void WriteVerdict(const Verdict& verdict);
  std::optional<Verdict> ReadVerdict(StepId id) const;
  // The last verdict written here, whatever its step: for status.
  std::optional<Verdict> LastVerdict() const;

  // What is published here, for this slot's page on another host: Put writes there what is new, in the order
  // in which it was published. Marks say whether a copy would differ from the last one. False: the copy is
  // not of this job.
  static constexpr int kMarks = 10;
  using Marks = std::array<uint64_t, kMarks>;
  Marks ReadMarks() const;
  // CONSUMED of all units where other hosts need it, as bytes to be compared; else empty.
  absl::string_view ConsumedBytes() const;
  std::string Copy() const;
  bool Put(absl::string_view copy);

  WorkerUndo undo(int worker) const;

  // What this owner waits for, for status and errors; at most 120 bytes. Written without order: may read
  // torn.
  void SetWaitsFor(absl::string_view text);
  std::string WaitsFor() const;

 private:
  struct Page;
  struct BoundaryRecord;
  static void WriteBoundary(BoundaryRecord& record, const BoundaryOffer& offer);
  static BoundaryOffer ReadBoundary(const BoundaryRecord& record);
  // The later of the two.
  BoundaryOffer ReadBoundaryDone() const;
  Page* page() const;

  const JobSpec* spec_ = nullptr;
  char* base_ = nullptr;
  int64_t consumed_at_ = 0, sliced_at_ = 0, nothing_at_ = 0, changed_at_ = 0, groups_at_ = 0, bits_at_ = 0,
          undo_at_ = 0, undo_bytes_ = 0;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_RECORDS_H_

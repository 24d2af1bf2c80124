// How the records of runtime/records.h lie in their pages. For the files that implement them only.
#ifndef SHERD_RUNTIME_RECORDS_LAYOUT_H_
#define SHERD_RUNTIME_RECORDS_LAYOUT_H_

#include <atomic>
#include <cstdint>

#include "core/exact_sum.h"
#include "core/mark.h"
#include "runtime/records.h"

namespace sherd::runtime {

// Lays out areas one after another, each aligned to a cache line.
class Areas {
 public:
  int64_t Add(int64_t bytes) {
    const int64_t at = size_;
    size_ = (size_ + bytes + 63) / 64 * 64;
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

inline int64_t TensorWords(const JobSpec& spec) {
  return (static_cast<int64_t>(spec.layout.tensors().size()) + 63) / 64;
}
inline int64_t Units(const JobSpec& spec) { return static_cast<int64_t>(spec.layout.units().size()); }

struct ProposalWords {
  uint64_t ranges, snapshot, import;
  void Set(const Proposals& p) { ranges = p.ranges, snapshot = p.snapshot, import = p.import; }
  Proposals Get() const { return {ranges, snapshot, import}; }
};

using Word = std::atomic<uint64_t>;

// Begins to overwrite a record: from here on it reads as absent.
inline void Invalidate(Word& mark) {
  mark.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
}

// Marks of step 0 would read as absent; records of a step count from 1.
inline uint64_t RecordWord(StepId id) { return Mark::Of(id, 1).word(); }

struct RankRecords::Entry {
  Word mark;
  uint64_t offset;
  uint32_t chunk;
  float scale;
  Word wanted;
  Word gather, gather_turn;
};

struct RankRecords::StepHeader {
  Word mark;
  uint64_t samples;
  double weight, loss, max_grad_norm;
  LossScale loss_scale;
  uint32_t groups, imports;
  uint64_t blob_bytes;
  uint64_t import_ids[kMaxStepImports];
};

struct StepAreas {
  int64_t groups, parts, bits, blob, buffers, size;
  StepAreas(const JobSpec& spec, int64_t header) {
    Areas a;
    a.Add(header);
    groups = a.Add(GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars)));
    parts = a.Add(Units(spec) * 2);
    bits = a.Add(TensorWords(spec) * 8);
    blob = a.Add(spec.max_blob_bytes);
    buffers = a.Add(BufferArea(spec));
    size = a.size();
  }
};

struct OwnerRecords::BoundaryRecord {
  Word mark;  // (before, n)
  uint64_t ranges_epoch;
  ProposalWords proposals;
};

struct OwnerRecords::Page {
  alignas(64) Word done;
  ProposalWords done_decided[2];  // by parity of the step
  Word rejected;
  Word entered;  // ranges epoch
  Word changed;  // ranges epoch, after the two times
  Word closed_ns, opened_ns;
  alignas(64) Word prepared;
  uint64_t prepared_ranges, prepared_given_up;
  ProposalWords prepared_proposals;
  ExactSum sum;
  alignas(64) Word phased;
  alignas(64) BoundaryRecord boundary;
  BoundaryRecord boundary_done[2];  // by parity of n: a death while one is written leaves the one before
  alignas(64) Word verdict;
  uint32_t kind, groups, imports, reason_bytes;
  double grad_norm, grad_scale, clip, loss;
  uint64_t samples;
  LossScale loss_scale;
  ProposalWords verdict_proposals;
  // Enough for every rank's; more than that and the writers' STEP records still say which.
  uint64_t import_ids[kMaxStepImports * 64];
  char reason[512];
  alignas(64) char waits_for[120];
};

struct OwnerAreas {
  int64_t consumed, sliced, nothing, changed, groups, bits, undo, undo_bytes, size;
  OwnerAreas(const JobSpec& spec, int64_t page) {
    Areas a;
    a.Add(page);
    consumed = a.Add(Units(spec) * 8);
    sliced = a.Add(Units(spec) * 8);
    nothing = a.Add(Units(spec) * 8);
    changed = a.Add(Units(spec) * 8);
    groups = a.Add(GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars)));
    bits = a.Add(TensorWords(spec) * 8);
    // Two journal slots, the reduce block's norm, then the blocks.
    const int64_t blocks = 1 + static_cast<int64_t>(OptimizerPlanes(spec.optimizer).size()) + 1;
    undo_bytes = 128 + blocks * kBlockElements * 4;
    undo = a.Add(undo_bytes * kMaxWorkers);
    size = a.size();
  }
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_RECORDS_LAYOUT_H_

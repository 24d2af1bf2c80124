// How the records of trainers and owners are laid out and guarded: what records.cc and owner_records.cc
// share, and nobody else includes.
#ifndef SHERD_RUNTIME_RECORDS_INTERNAL_H_
#define SHERD_RUNTIME_RECORDS_INTERNAL_H_

#include <atomic>
#include <cstdint>

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

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_RECORDS_INTERNAL_H_

#include "server/snapshot_reader.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"

namespace sherd::server {
namespace {

absl::Status CheckEntry(runtime::SnapshotEntry* entry, uint64_t id) {
  if (entry == nullptr || entry->id.load(std::memory_order_acquire) != id) {
    return absl::NotFoundError(absl::StrCat("there is no snapshot ", id,
                                            ": it was released, or nobody read it for its idle_timeout"));
  }
  if (entry->overflowed.load(std::memory_order_acquire) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("snapshot ", id,
                     " overflowed its pool while training went on: take another with a larger pool_bytes, or "
                     "on_slow_reader=wait"));
  }
  return absl::OkStatus();
}

}  // namespace

runtime::SnapshotEntry* FindSnapshot(runtime::ControlPage& control, uint64_t id) {
  if (id == 0) return nullptr;
  for (runtime::SnapshotEntry& e : control.snapshots) {
    if (e.id.load(std::memory_order_acquire) == id) return &e;
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<SnapshotReader>> SnapshotReader::Open(runtime::JobMemory* memory,
                                                                     uint64_t id) {
  runtime::SnapshotEntry* entry = FindSnapshot(memory->control(), id);
  if (absl::Status s = CheckEntry(entry, id); !s.ok()) return s;
  const uint64_t cut_plus_1 = entry->cut_plus_1.load(std::memory_order_acquire);
  absl::StatusOr<StepId> done = memory->DoneByAll();
  if (!done.ok()) return done.status();
  if (cut_plus_1 == 0 || done->step.value() + 1 < cut_plus_1) {
    return absl::UnavailableError(absl::StrCat("snapshot ", id, " waits for the end of a step"));
  }
  absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(*memory, id);
  if (!pool.ok()) return pool.status();
  std::shared_ptr<SnapshotReader> reader(new SnapshotReader(
      memory, id, Step(cut_plus_1 - 1), absl::Nanoseconds(entry->idle_ns.load()), *std::move(pool)));
  if (absl::Status s = reader->Check(); !s.ok()) return s;
  return reader;
}

absl::StatusOr<std::shared_ptr<SnapshotReader>> SnapshotReader::OpenOfStep(runtime::JobMemory* memory,
                                                                           uint64_t id, uint64_t step) {
  absl::StatusOr<std::shared_ptr<SnapshotReader>> reader = Open(memory, id);
  if (reader.ok() && (*reader)->step().value() != step) {
    return absl::NotFoundError(absl::StrCat("snapshot ", id, " is of step ", (*reader)->step().value(),
                                            " here and not of step ", step, ": take another one"));
  }
  return reader;
}

void SnapshotReader::Read(const TensorInfo& tensor, int plane, int64_t first, int64_t count,
                          char* out) const {
  pool_.Read(plane, memory_->plane(plane), tensor.blocks.begin * kBlockElements + first, count, out);
}

void SnapshotReader::ReadBlocks(int plane, BlockRange blocks, char* out) const {
  pool_.Read(plane, memory_->plane(plane), blocks.begin * kBlockElements, blocks.size() * kBlockElements,
             out);
}

const char* SnapshotReader::Live(const TensorInfo& tensor, int plane, int64_t first) const {
  return reinterpret_cast<const char*>(memory_->plane(plane) + tensor.blocks.begin * kBlockElements + first);
}

bool SnapshotReader::IsLive(BlockRange blocks) { return pool_.IsLive(blocks) && Check().ok(); }

absl::Status SnapshotReader::Check() {
  // What was copied before must have been copied before the entry is looked at: an owner that finds the entry
  // gone or full mutates without keeping the block.
  std::atomic_thread_fence(std::memory_order_acquire);
  runtime::SnapshotEntry* entry = FindSnapshot(memory_->control(), id_);
  if (absl::Status s = CheckEntry(entry, id_); !s.ok()) return s;
  entry->expires_ns.store(runtime::MonotonicNanos() + entry->idle_ns.load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
  return absl::OkStatus();
}

}  // namespace sherd::server

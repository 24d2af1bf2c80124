// Reads an open snapshot: any tensor in any of its planes, as after its step, while training goes on.
//
//   absl::StatusOr<std::shared_ptr<SnapshotReader>> r = SnapshotReader::Open(&memory, id);
//   (*r)->Read(tensor, plane, 0, 1000, out);
//   absl::Status whole = (*r)->Check();      // what was read so far may be used only if this is OK
//
// Thread-safe. Open blocks on the file system only.
#ifndef SHERD_SERVER_SNAPSHOT_READER_H_
#define SHERD_SERVER_SNAPSHOT_READER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/types.h"
#include "runtime/job_memory.h"
#include "server/snapshot_pool.h"

namespace sherd::server {

// The table entry of an open snapshot, or null.
runtime::SnapshotEntry* FindSnapshot(runtime::ControlPage& control, uint64_t id);

class SnapshotReader {
 public:
  // NOT_FOUND: released, expired or never there. UNAVAILABLE: its step is not stored everywhere yet.
  // RESOURCE_EXHAUSTED: it overflowed. `memory` must outlive the reader.
  static absl::StatusOr<std::shared_ptr<SnapshotReader>> Open(runtime::JobMemory* memory, uint64_t id);
  // For another host, which has cut it after this step. NOT_FOUND also: it was cut after another one here.
  static absl::StatusOr<std::shared_ptr<SnapshotReader>> OpenOfStep(runtime::JobMemory* memory, uint64_t id,
                                                                    uint64_t step);

  uint64_t id() const { return id_; }
  Step step() const { return step_; }
  absl::Duration idle_timeout() const { return idle_timeout_; }
  bool HasPlane(int plane) const { return pool_.plane_mask() >> plane & 1; }

  // Elements [first, first + count) of a tensor, fp32, to `out` (any alignment). REQUIRES: HasPlane, the
  // tensor has the plane, and the range is in it and, in a job of several hosts, this host's.
  void Read(const TensorInfo& tensor, int plane, int64_t first, int64_t count, char* out) const;
  // Whole blocks, counted from block 0 of the layout, padding included. REQUIRES: HasPlane, and the plane
  // reaches so far.
  void ReadBlocks(int plane, BlockRange blocks, char* out) const;
  // Where those elements lie in the job's memory.
  const char* Live(const TensorInfo& tensor, int plane, int64_t first) const;
  // Whether what was read there of these blocks before this call is of the snapshot: nothing has mutated
  // them, and the snapshot is still there.
  bool IsLive(BlockRange blocks);
  // Updates of a tensor up to the snapshot; the bytes of a buffer.
  uint64_t UpdateCount(int tensor) const { return pool_.tensor_steps()[tensor]; }
  absl::Span<const char> buffers() const { return pool_.buffers(); }
  // The rest of what was kept at the cut.
  const SnapshotPool& pool() const { return pool_; }

  // OK if everything read before this call is of the snapshot; puts its expiry off. NOT_FOUND,
  // RESOURCE_EXHAUSTED as Open.
  absl::Status Check();

 private:
  SnapshotReader(runtime::JobMemory* memory, uint64_t id, Step step, absl::Duration idle_timeout,
                 SnapshotPool pool)
      : memory_(memory), id_(id), step_(step), idle_timeout_(idle_timeout), pool_(std::move(pool)) {}

  runtime::JobMemory* const memory_;
  const uint64_t id_;
  const Step step_;
  const absl::Duration idle_timeout_;
  const SnapshotPool pool_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOT_READER_H_

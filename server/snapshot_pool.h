// The copy-on-write pool of one snapshot: segment snap.<id> of its job. It makes the state after step s
// readable while later steps run.
//
// The creator (server/snapshots.h), before it proposes the snapshot:
//   absl::StatusOr<SnapshotPool> pool = SnapshotPool::Create(memory, entry.id, mask, pool_blocks);
// An owner, when it carries out the decision that cuts after s, before it publishes DONE(s):
//   pool->SaveAtCut(memory, s, loss_scale);
// and whenever it is about to mutate blocks in a later step (or to store an import there), before it arms
// its journal:
//   if (pool->Preserve(entry, blocks, live) < blocks.size()) ...   // full: see SnapshotEntry::wait_when_full
// A reader, once all owners are DONE(s):
//   pool->Read(plane, live, first, count, out);
//
// Why a read is whole. A block's index is stored before the block is first mutated after the cut, and a
// reader looks at the index after it has copied the live block: an unset index means that the copy was made
// before the first mutation. All owners may do the same work twice (after a death): they store the same
// bytes.
//
// In a pool with room for all blocks each has its own place, so that an owner touches only its own part;
// otherwise places are given out in order.
//
// Preserve is thread-safe for different blocks, everything else for any; nothing blocks but Create, Open and
// Populate.
#ifndef SHERD_SERVER_SNAPSHOT_POOL_H_
#define SHERD_SERVER_SNAPSHOT_POOL_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "core/types.h"
#include "runtime/control_page.h"
#include "runtime/job_memory.h"
#include "runtime/segment.h"

namespace sherd::server {

class SnapshotPool {
 public:
  // Bits of the mask: 0 for param, 1 + i for the optimizer's plane i (SnapshotEntry::plane_mask); and this
  // one for what trainers committed with the step (their blobs and scalars), which only a save wants.
  static constexpr uint64_t kTrainerState = uint64_t{1} << 63;
  static uint64_t AllPlanes(const runtime::JobMemory& memory) { return (uint64_t{1} << memory.planes()) - 1; }
  static int PlanesIn(uint64_t plane_mask) { return __builtin_popcountll(plane_mask & ~kTrainerState); }
  static int64_t BytesFor(const runtime::JobMemory& memory, uint64_t plane_mask, int64_t pool_blocks);

  // Reserves the segment, with a few blocks to spare for those a death wastes; on a host of several, with
  // room for all, what it owns of them. RESOURCE_EXHAUSTED names the bytes needed and free.
  static absl::StatusOr<SnapshotPool> Create(const runtime::JobMemory& memory, uint64_t id,
                                             uint64_t plane_mask, int64_t pool_blocks);
  // NOT_FOUND once the snapshot is released.
  static absl::StatusOr<SnapshotPool> Open(const runtime::JobMemory& memory, uint64_t id);
  // Takes the name away; mappings stay. Not an error if it is gone.
  static absl::Status Remove(const runtime::JobDir& dir, uint64_t id);

  uint64_t plane_mask() const;
  int64_t pool_blocks() const;

  // First touch of where `blocks` are kept, so that steps do not pay for it; nothing in a pool that has not
  // room for all. May run while the pool is in use. See Segment::PopulateRange.
  absl::Status Populate(BlockRange blocks, const std::atomic<bool>* cancel) const;

  // Keeps what is small whole: update counts per tensor, the buffers, and what trainers committed, as after
  // the cut step. `memory` is the job's; `loss_scale` is what the step's verdict left.
  void SaveAtCut(const runtime::JobMemory& memory, Step step, const LossScale& loss_scale);

  // Keeps those of `blocks` that are not kept yet as they are. live[p] is the first of them in plane p of the
  // job, or null where they have no such plane. `entry` is this snapshot's. Returns how many of the first
  // blocks are kept now: fewer than all if there is no room (the next one must not be mutated unless the
  // snapshot is given up).
  int64_t Preserve(runtime::SnapshotEntry& entry, BlockRange blocks, const float* const* live);

  // Copies elements [first, first + count) of a plane, counted from the first element of block 0, as they
  // were at the cut. `live` is the job's plane. `out` needs no alignment. REQUIRES: the plane is in the mask
  // and reaches so far.
  void Read(int plane, const float* live, int64_t first, int64_t count, char* out) const;

  // Whether none of them is kept: what was copied or summed before this call from where they live in the job
  // is as at the cut.
  bool IsLive(BlockRange blocks) const;

  // What SaveAtCut kept.
  absl::Span<const uint64_t> tensor_steps() const;
  absl::Span<const char> buffers() const;
  // Of rank 0's record of the cut step; empty before the first step. REQUIRES: kTrainerState in the mask.
  absl::Span<const GroupScalars> groups() const;
  const LossScale& loss_scale() const;
  uint64_t updates() const;                 // of the job: what its schedule counts
  int world_size() const;                   // of the cut step
  absl::string_view blob(Rank rank) const;  // REQUIRES: rank < world_size()

 private:
  struct Header;
  struct TrainerState;
  static bool HasRoomForAll(const Header& h);
  static std::vector<runtime::Segment::Range> Reserved(const runtime::JobMemory& memory, const Header& h);
  static int64_t BlobStride(const JobSpec& spec);
  static int64_t TrainerBytes(const JobSpec& spec, int64_t places, uint64_t plane_mask);
  static int64_t BytesFor(const runtime::JobMemory& memory, int64_t places, uint64_t plane_mask,
                          int64_t pool_blocks);
  TrainerState* trainers() const;
  explicit SnapshotPool(runtime::Segment segment);
  Header* header() const { return segment_.as<Header>(); }
  std::atomic<uint32_t>* index() const;
  // Room for all blocks: block b has place b + 1.
  bool whole() const;
  // Places lie plane by plane, so that what is kept in a row is read in a row.
  float* kept(uint32_t place, int plane) const;
  // Of planes of the mask in front of `plane`.
  int PlanesBefore(int plane) const;
  void KeepWhole(BlockRange blocks, const float* const* live, int64_t from);

  runtime::Segment segment_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOT_POOL_H_

#include "server/snapshot_pool.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::Segment;
using runtime::SegmentKind;

// Every death may waste a pool block per worker thread; so many never fill a pool that has room for all
// blocks.
constexpr int64_t kSpareBlocks = 256;

int64_t AlignUp(int64_t n) { return (n + 63) / 64 * 64; }
std::string SegmentName(uint64_t id) { return absl::StrCat("snap.", id); }

}  // namespace

// All offsets in bytes from the segment's payload. Written once, by Create.
struct SnapshotPool::Header {
  uint64_t plane_mask;
  int64_t pool_blocks;  // spare ones included
  int64_t tensors;
  int64_t buffer_bytes;
  int64_t steps_at, buffers_at, trainers_at, index_at, data_at, total;
};

// Groups' scalars and the blobs follow, each blob behind its size, BlobStride bytes apart.
struct SnapshotPool::TrainerState {
  LossScale loss_scale;
  uint64_t updates;
  int64_t groups;
  int64_t blobs_at;  // from here
  int64_t blob_stride;
};

int64_t SnapshotPool::BlobStride(const JobSpec& spec) { return AlignUp(8 + spec.max_blob_bytes); }

int64_t SnapshotPool::TrainerBytes(const JobSpec& spec, uint64_t plane_mask) {
  if ((plane_mask & kTrainerState) == 0) return 0;
  return AlignUp(sizeof(TrainerState)) +
         AlignUp(runtime::GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars))) +
         spec.world_size * BlobStride(spec);
}

SnapshotPool::SnapshotPool(Segment segment) : segment_(std::move(segment)) {}

int64_t SnapshotPool::BytesFor(const JobMemory& memory, uint64_t plane_mask, int64_t pool_blocks) {
  const int64_t tensors = memory.layout().tensors().size();
  return AlignUp(sizeof(Header)) + AlignUp(tensors * 8) + AlignUp(runtime::BufferArea(memory.spec())) +
         TrainerBytes(memory.spec(), plane_mask) + AlignUp(memory.layout().total_blocks() * 4) +
         (pool_blocks + kSpareBlocks) * PlanesIn(plane_mask) * kBlockElements * 4;
}

absl::StatusOr<SnapshotPool> SnapshotPool::Create(const JobMemory& memory, uint64_t id, uint64_t plane_mask,
                                                  int64_t pool_blocks) {
  absl::StatusOr<Segment> segment = Segment::Create(memory.dir(), SegmentName(id), SegmentKind::kSnapshot,
                                                    BytesFor(memory, plane_mask, pool_blocks));
  if (!segment.ok()) return segment.status();
  SnapshotPool pool(*std::move(segment));
  Header& h = *pool.header();
  h.plane_mask = plane_mask;
  h.pool_blocks = pool_blocks + kSpareBlocks;
  h.tensors = memory.layout().tensors().size();
  h.buffer_bytes = runtime::BufferArea(memory.spec());
  h.steps_at = AlignUp(sizeof(Header));
  h.buffers_at = h.steps_at + AlignUp(h.tensors * 8);
  h.trainers_at = h.buffers_at + AlignUp(h.buffer_bytes);
  h.index_at = h.trainers_at + TrainerBytes(memory.spec(), plane_mask);
  h.data_at = h.index_at + AlignUp(memory.layout().total_blocks() * 4);
  h.total = pool.segment_.size();
  return pool;
}

absl::StatusOr<SnapshotPool> SnapshotPool::Open(const JobMemory& memory, uint64_t id) {
  absl::StatusOr<Segment> segment =
      Segment::Open(memory.dir(), SegmentName(id), Segment::Access::kReadWrite, SegmentKind::kSnapshot);
  if (!segment.ok()) return segment.status();
  SnapshotPool pool(*std::move(segment));
  const bool header_fits = pool.segment_.size() >= static_cast<int64_t>(sizeof(Header));
  const Header h = header_fits ? *pool.header() : Header{};
  if (h.plane_mask == 0 || h.total != pool.segment_.size() ||
      h.total != BytesFor(memory, h.plane_mask, h.pool_blocks - kSpareBlocks)) {
    return absl::NotFoundError(absl::StrCat("snapshot ", id, " is being created"));
  }
  return pool;
}

absl::Status SnapshotPool::Remove(const runtime::JobDir& dir, uint64_t id) {
  absl::Status s = Segment::Unlink(dir, SegmentName(id));
  return absl::IsNotFound(s) ? absl::OkStatus() : s;
}

uint64_t SnapshotPool::plane_mask() const { return header()->plane_mask; }
int64_t SnapshotPool::pool_blocks() const { return header()->pool_blocks; }

std::atomic<uint32_t>* SnapshotPool::index() const {
  return reinterpret_cast<std::atomic<uint32_t>*>(segment_.data() + header()->index_at);
}

float* SnapshotPool::kept(uint32_t place, int plane) const {
  const uint64_t mask = header()->plane_mask;
  const int before = PlanesIn(mask & ((uint64_t{1} << plane) - 1));
  const int64_t at = (static_cast<int64_t>(place - 1) * PlanesIn(mask) + before) * kBlockElements * 4;
  return reinterpret_cast<float*>(segment_.data() + header()->data_at + at);
}

SnapshotPool::TrainerState* SnapshotPool::trainers() const {
  return reinterpret_cast<TrainerState*>(segment_.data() + header()->trainers_at);
}

void SnapshotPool::SaveAtCut(const JobMemory& memory, Step step, const LossScale& loss_scale) {
  const Header& h = *header();
  const std::atomic<uint64_t>* from = memory.tensor_steps(step);
  auto* steps = reinterpret_cast<uint64_t*>(segment_.data() + h.steps_at);
  for (int64_t t = 0; t < h.tensors; ++t) steps[t] = from[t].load(std::memory_order_relaxed);
  const absl::Span<const char> buffers = memory.rank(Rank(0)).buffers(step);
  std::memcpy(segment_.data() + h.buffers_at, buffers.data(),
              std::min<int64_t>(buffers.size(), h.buffer_bytes));
  if ((h.plane_mask & kTrainerState) == 0) return;
  // The records of the step stand until every owner is done with the one after it.
  TrainerState& state = *trainers();
  const std::optional<TrainerStep> record = memory.rank(Rank(0)).ReadStep(step);
  state.loss_scale = loss_scale;
  state.updates = memory.updates(step).load(std::memory_order_relaxed);
  state.groups = record.has_value() ? static_cast<int64_t>(record->groups.size()) : 0;
  state.blobs_at = AlignUp(sizeof(TrainerState)) +
                   AlignUp(runtime::GroupCount(memory.spec()) * static_cast<int64_t>(sizeof(GroupScalars)));
  state.blob_stride = BlobStride(memory.spec());
  char* const base = reinterpret_cast<char*>(&state);
  if (record.has_value()) {
    std::memcpy(base + AlignUp(sizeof(TrainerState)), record->groups.data(),
                record->groups.size() * sizeof(GroupScalars));
  }
  for (int r = 0; r < memory.spec().world_size; ++r) {
    const std::string blob = memory.rank(Rank(r)).ReadBlob(step);
    char* const at = base + state.blobs_at + r * state.blob_stride;
    const int64_t bytes = static_cast<int64_t>(blob.size());
    std::memcpy(at, &bytes, sizeof(bytes));
    blob.copy(at + sizeof(bytes), blob.size());
  }
}

absl::Span<const GroupScalars> SnapshotPool::groups() const {
  const TrainerState& state = *trainers();
  const char* at = reinterpret_cast<const char*>(&state) + AlignUp(sizeof(TrainerState));
  return absl::MakeConstSpan(reinterpret_cast<const GroupScalars*>(at), state.groups);
}

const LossScale& SnapshotPool::loss_scale() const { return trainers()->loss_scale; }

uint64_t SnapshotPool::updates() const { return trainers()->updates; }

absl::string_view SnapshotPool::blob(Rank rank) const {
  const TrainerState& state = *trainers();
  const char* at = reinterpret_cast<const char*>(&state) + state.blobs_at + rank.value() * state.blob_stride;
  int64_t bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  return absl::string_view(at + sizeof(bytes), bytes);
}

bool SnapshotPool::Preserve(runtime::SnapshotEntry& entry, int64_t block, const float* const* live) {
  std::atomic<uint32_t>& slot = index()[block];
  if (slot.load(std::memory_order_relaxed) != 0) return true;
  const uint64_t place = entry.used.fetch_add(1, std::memory_order_relaxed);
  if (place >= static_cast<uint64_t>(header()->pool_blocks)) {
    entry.used.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  const uint32_t place_plus_1 = static_cast<uint32_t>(place + 1);
  for (uint64_t left = header()->plane_mask & ~kTrainerState; left != 0; left &= left - 1) {
    const int plane = __builtin_ctzll(left);
    if (live[plane] != nullptr) std::memcpy(kept(place_plus_1, plane), live[plane], kBlockElements * 4);
  }
  slot.store(place_plus_1, std::memory_order_release);
  // No store of the mutation that follows may be seen before the index.
  std::atomic_thread_fence(std::memory_order_release);
  return true;
}

void SnapshotPool::Read(int plane, const float* live, int64_t first, int64_t count, char* out) const {
  // All of it in one go, then those blocks again that the pool has: fewer and longer copies than block by
  // block.
  std::memcpy(out, live + first, count * 4);
  // The copy first, then the look at the index.
  std::atomic_thread_fence(std::memory_order_acquire);
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t block = at / kBlockElements;
    const int64_t stop = std::min(end, (block + 1) * kBlockElements);
    const uint32_t place = index()[block].load(std::memory_order_acquire);
    if (place != 0) {
      std::memcpy(out + (at - first) * 4, kept(place, plane) + at % kBlockElements, (stop - at) * 4);
    }
    at = stop;
  }
}

absl::Span<const uint64_t> SnapshotPool::tensor_steps() const {
  return absl::MakeConstSpan(reinterpret_cast<const uint64_t*>(segment_.data() + header()->steps_at),
                             header()->tensors);
}

absl::Span<const char> SnapshotPool::buffers() const {
  return absl::MakeConstSpan(reinterpret_cast<const char*>(segment_.data() + header()->buffers_at),
                             header()->buffer_bytes);
}

}  // namespace sherd::server

#include "server/snapshot_pool.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "kernels/stream_copy.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::Segment;
using runtime::SegmentKind;

// Every death may waste a pool block per worker thread; so many never fill a pool that has room for all
// blocks.
constexpr int64_t kSpareBlocks = 256;
constexpr int64_t kBlockBytes = kBlockElements * 4;

int64_t AlignUp(int64_t n) { return (n + 63) / 64 * 64; }
std::string SegmentName(uint64_t id) { return absl::StrCat("snap.", id); }

}  // namespace

// All offsets in bytes from the segment's payload. Written once, by Create.
struct SnapshotPool::Header {
  uint64_t plane_mask;
  int64_t pool_blocks;  // spare ones included
  int64_t job_blocks;
  int64_t tensors;
  int64_t buffer_bytes;
  int64_t places;  // ranks whose blobs have room
  int64_t steps_at, buffers_at, trainers_at, index_at, data_at, total;
};

// Groups' scalars and the blobs follow, each blob behind its size, BlobStride bytes apart.
struct SnapshotPool::TrainerState {
  LossScale loss_scale;
  uint64_t updates;
  int64_t groups;
  int64_t world_size;  // of the cut step; that had room
  int64_t blobs_at;    // from here
  int64_t blob_stride;
};

int64_t SnapshotPool::BlobStride(const JobSpec& spec) { return AlignUp(8 + spec.max_blob_bytes); }

int64_t SnapshotPool::TrainerBytes(const JobSpec& spec, int64_t places, uint64_t plane_mask) {
  if ((plane_mask & kTrainerState) == 0) return 0;
  return AlignUp(sizeof(TrainerState)) +
         AlignUp(runtime::GroupCount(spec) * static_cast<int64_t>(sizeof(GroupScalars))) +
         places * BlobStride(spec);
}

SnapshotPool::SnapshotPool(Segment segment) : segment_(std::move(segment)) {}

int64_t SnapshotPool::BytesFor(const JobMemory& memory, uint64_t plane_mask, int64_t pool_blocks) {
  return BytesFor(memory, memory.places(), plane_mask, pool_blocks);
}

int64_t SnapshotPool::BytesFor(const JobMemory& memory, int64_t places, uint64_t plane_mask,
                               int64_t pool_blocks) {
  const int64_t tensors = memory.layout().tensors().size();
  return AlignUp(sizeof(Header)) + AlignUp(tensors * 8) + AlignUp(runtime::BufferArea(memory.spec())) +
         TrainerBytes(memory.spec(), places, plane_mask) + AlignUp(memory.layout().total_blocks() * 4) +
         (pool_blocks + kSpareBlocks) * PlanesIn(plane_mask) * kBlockBytes;
}

absl::StatusOr<SnapshotPool> SnapshotPool::Create(const JobMemory& memory, uint64_t id, uint64_t plane_mask,
                                                  int64_t pool_blocks) {
  const int64_t places = memory.places();
  Header h = {};
  h.plane_mask = plane_mask;
  h.pool_blocks = pool_blocks + kSpareBlocks;
  h.job_blocks = memory.layout().total_blocks();
  h.tensors = memory.layout().tensors().size();
  h.buffer_bytes = runtime::BufferArea(memory.spec());
  h.places = places;
  h.steps_at = AlignUp(sizeof(Header));
  h.buffers_at = h.steps_at + AlignUp(h.tensors * 8);
  h.trainers_at = h.buffers_at + AlignUp(h.buffer_bytes);
  h.index_at = h.trainers_at + TrainerBytes(memory.spec(), places, plane_mask);
  h.data_at = h.index_at + AlignUp(memory.layout().total_blocks() * 4);
  h.total = BytesFor(memory, places, plane_mask, pool_blocks);
  absl::StatusOr<Segment> segment = Segment::CreateSparse(
      memory.dir(), SegmentName(id), SegmentKind::kSnapshot, h.total, Reserved(memory, h));
  if (!segment.ok()) return segment.status();
  SnapshotPool pool(*std::move(segment));
  *pool.header() = h;
  return pool;
}

// Where a block has a place of its own, nobody keeps those of other hosts here.
std::vector<Segment::Range> SnapshotPool::Reserved(const JobMemory& memory, const Header& h) {
  const runtime::HostPlace& place = memory.place();
  if (!place.several() || !HasRoomForAll(h)) return {{0, h.total}};
  std::vector<Segment::Range> ranges = {{0, h.data_at}};
  for (int p = 0; p < PlanesIn(h.plane_mask); ++p) {
    for (const UnitInfo& unit : memory.layout().units()) {
      const BlockRange own = HostShare(unit.blocks, place.index, memory.grid());
      const int64_t at = h.data_at + (p * h.pool_blocks + own.begin) * kBlockBytes;
      if (!own.empty()) ranges.push_back({at, own.size() * kBlockBytes});
    }
  }
  return ranges;
}

bool SnapshotPool::HasRoomForAll(const Header& h) { return h.pool_blocks - kSpareBlocks >= h.job_blocks; }

absl::StatusOr<SnapshotPool> SnapshotPool::Open(const JobMemory& memory, uint64_t id) {
  absl::StatusOr<Segment> segment =
      Segment::Open(memory.dir(), SegmentName(id), Segment::Access::kReadWrite, SegmentKind::kSnapshot);
  if (!segment.ok()) return segment.status();
  SnapshotPool pool(*std::move(segment));
  const bool header_fits = pool.segment_.size() >= static_cast<int64_t>(sizeof(Header));
  const Header h = header_fits ? *pool.header() : Header{};
  if (h.plane_mask == 0 || h.total != pool.segment_.size() ||
      h.total != BytesFor(memory, h.places, h.plane_mask, h.pool_blocks - kSpareBlocks)) {
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

bool SnapshotPool::whole() const { return HasRoomForAll(*header()); }

int SnapshotPool::PlanesBefore(int plane) const {
  return PlanesIn(header()->plane_mask & ((uint64_t{1} << plane) - 1));
}

float* SnapshotPool::kept(uint32_t place, int plane) const {
  const int64_t at = (PlanesBefore(plane) * header()->pool_blocks + place - 1) * kBlockBytes;
  return reinterpret_cast<float*>(segment_.data() + header()->data_at + at);
}

absl::Status SnapshotPool::Populate(BlockRange blocks, const std::atomic<bool>* cancel) const {
  absl::Status s;
  if (!whole() || blocks.empty()) return s;
  for (uint64_t left = header()->plane_mask & ~kTrainerState; left != 0 && s.ok(); left &= left - 1) {
    const char* at = reinterpret_cast<const char*>(kept(blocks.begin + 1, __builtin_ctzll(left)));
    s = segment_.PopulateRange(at - reinterpret_cast<const char*>(segment_.data()),
                               blocks.size() * kBlockBytes, cancel);
  }
  return s;
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
  // A rank that joined after the room was made is left out: it took rank 0's blob a moment ago.
  const std::optional<runtime::Assignment> cut = memory.control().AssignmentFor(step);
  state.world_size =
      std::min<int64_t>(cut.has_value() ? cut->world_size : memory.spec().world_size, h.places);
  for (int r = 0; r < state.world_size; ++r) {
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

int SnapshotPool::world_size() const { return static_cast<int>(trainers()->world_size); }

uint64_t SnapshotPool::updates() const { return trainers()->updates; }

absl::string_view SnapshotPool::blob(Rank rank) const {
  const TrainerState& state = *trainers();
  const char* at = reinterpret_cast<const char*>(&state) + state.blobs_at + rank.value() * state.blob_stride;
  int64_t bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  return absl::string_view(at + sizeof(bytes), bytes);
}

int64_t SnapshotPool::Preserve(runtime::SnapshotEntry& entry, BlockRange blocks, const float* const* live) {
  int64_t taken = 0;
  int64_t kept_now = 0;
  std::atomic<uint32_t>* const slots = index();
  const auto is_kept = [&](int64_t b) { return slots[b].load(std::memory_order_relaxed) != 0; };
  for (int64_t b = blocks.begin; b < blocks.end;) {
    if (is_kept(b)) {
      ++b, ++kept_now;
      continue;
    }
    int64_t end = b + 1;
    if (whole()) {
      while (end < blocks.end && !is_kept(end)) ++end;
      KeepWhole({b, end}, live, b - blocks.begin);
      taken += end - b;
    } else {
      const uint64_t place = entry.used.fetch_add(1, std::memory_order_relaxed);
      if (place >= static_cast<uint64_t>(header()->pool_blocks)) {
        entry.used.fetch_sub(1, std::memory_order_relaxed);
        break;
      }
      const uint32_t place_plus_1 = static_cast<uint32_t>(place + 1);
      for (uint64_t left = header()->plane_mask & ~kTrainerState; left != 0; left &= left - 1) {
        const int plane = __builtin_ctzll(left);
        if (live[plane] == nullptr) continue;
        std::memcpy(kept(place_plus_1, plane), live[plane] + (b - blocks.begin) * kBlockElements,
                    kBlockBytes);
      }
      slots[b].store(place_plus_1, std::memory_order_release);
    }
    kept_now += end - b;
    b = end;
  }
  if (taken > 0) entry.used.fetch_add(taken, std::memory_order_relaxed);
  // No store of the mutation that follows may be seen before the index.
  std::atomic_thread_fence(std::memory_order_release);
  return kept_now;
}

void SnapshotPool::KeepWhole(BlockRange blocks, const float* const* live, int64_t from) {
  for (uint64_t left = header()->plane_mask & ~kTrainerState; left != 0; left &= left - 1) {
    const int plane = __builtin_ctzll(left);
    if (live[plane] == nullptr) continue;
    // Nobody reads it soon, and the caller mutates what it is copied from at once: past the cache.
    kernels::StreamCopy(kept(static_cast<uint32_t>(blocks.begin + 1), plane),
                        live[plane] + from * kBlockElements, blocks.size() * kBlockBytes);
  }
  for (int64_t b = blocks.begin; b < blocks.end; ++b)
    index()[b].store(static_cast<uint32_t>(b + 1), std::memory_order_release);
}

void SnapshotPool::Read(int plane, const float* live, int64_t first, int64_t count, char* out) const {
  const std::atomic<uint32_t>* const slots = index();
  const int64_t end = first + count;
  const auto place_of = [&](int64_t at) {
    return slots[at / kBlockElements].load(std::memory_order_acquire);
  };
  const auto end_of_block = [&](int64_t at) {
    return std::min(end, (at / kBlockElements + 1) * kBlockElements);
  };
  // Stretches as long as can be, of blocks that the pool has in a row or of those that it has not.
  for (int64_t at = first; at < end;) {
    const uint32_t place = place_of(at);
    int64_t stop = end_of_block(at);
    if (place != 0) {
      for (uint32_t next = place + 1; stop < end && place_of(stop) == next; ++next) stop = end_of_block(stop);
      std::memcpy(out + (at - first) * 4, kept(place, plane) + at % kBlockElements, (stop - at) * 4);
      at = stop;
      continue;
    }
    while (stop < end && place_of(stop) == 0) stop = end_of_block(stop);
    std::memcpy(out + (at - first) * 4, live + at, (stop - at) * 4);
    // The copy first, then the look at the index: what was kept meanwhile may have been mutated.
    std::atomic_thread_fence(std::memory_order_acquire);
    for (; at < stop; at = end_of_block(at)) {
      const uint32_t now = place_of(at);
      if (now == 0) continue;
      std::memcpy(out + (at - first) * 4, kept(now, plane) + at % kBlockElements,
                  (end_of_block(at) - at) * 4);
    }
  }
}

bool SnapshotPool::IsLive(BlockRange blocks) const {
  std::atomic_thread_fence(std::memory_order_acquire);
  const std::atomic<uint32_t>* const slots = index();
  return std::all_of(slots + blocks.begin, slots + blocks.end,
                     [](const std::atomic<uint32_t>& s) { return s.load(std::memory_order_acquire) == 0; });
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

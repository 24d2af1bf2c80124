// JobMemory on a host of several: what of the job it has, and what it exchanges with the others.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "core/value_runs.h"
#include "runtime/job_memory.h"

namespace sherd::runtime {
namespace {

// Of bytes [begin, end): the whole pages. Empty: begin >= end.
Segment::Range WholePages(int64_t begin, int64_t end) {
  constexpr int64_t kPage = Segment::kPageBytes;
  const int64_t first = (begin + kPage - 1) / kPage * kPage;
  return {first, std::max<int64_t>(0, end / kPage * kPage - first)};
}

}  // namespace

void JobMemory::SetPlace(HostPlace place) {
  place_ = place;
  const int group = ShardHosts(spec_, place.count);
  grid_ = {place.count, group > 0 ? group : place.count};
}

std::vector<Segment::Range> JobMemory::Shares(int64_t block_bytes, bool others, bool trainable,
                                              int64_t at) const {
  std::vector<Segment::Range> ranges;
  for (const UnitInfo& unit : layout().units()) {
    if (trainable && unit.blocks.begin >= trainable_blocks()) continue;
    std::vector<BlockRange> shares = {HostShare(unit.blocks, place_.index, grid())};
    if (others && grid().groups() > 1) shares = {unit.blocks};
    if (others && grid().groups() == 1) shares = OthersShare(unit.blocks, place_.index, grid());
    for (const BlockRange& share : shares) {
      if (!share.empty()) ranges.push_back({at + share.begin * block_bytes, share.size() * block_bytes});
    }
  }
  return ranges;
}

absl::Status JobMemory::MapExchange(bool create) {
  if (role_ != Role::kOwner) return absl::OkStatus();
  const int64_t bytes = trainable_blocks() * wire_block_bytes();
  const int64_t marks = InboxMarkBytes();
  std::vector<Segment::Range> ranges;
  if (create) ranges = Shares(wire_block_bytes(), /*others=*/true, /*trainable=*/true);
  absl::StatusOr<Segment> out = Get("outbox", SegmentKind::kExchange, bytes, create, true, &ranges);
  if (!out.ok()) return out.status();
  outbox_ = *std::move(out);
  if (create) ranges = Shares(wire_block_bytes(), /*others=*/false, /*trainable=*/true, marks);
  ranges.push_back({0, marks});
  inboxes_.resize(place_.count);
  for (int h = 0; h < place_.count; ++h) {
    if (h == place_.index) continue;
    absl::StatusOr<Segment> in =
        Get(absl::StrCat("inbox.", h), SegmentKind::kExchange, marks + bytes, create, true, &ranges);
    if (!in.ok()) return in.status();
    inboxes_[h] = *std::move(in);
  }
  return absl::OkStatus();
}

std::vector<Segment::Range> JobMemory::KeptParameters(bool masters) const {
  const int64_t bytes = ParameterBlockBytes(masters);
  std::vector<Segment::Range> kept;
  const auto keep = [&](int64_t begin, int64_t end) {
    if (begin < end) kept.push_back({begin, end - begin});
  };
  for (size_t u = 0; u < layout().units().size(); ++u) {
    const BlockRange unit = layout().units()[u].blocks;
    const BlockRange own = HostShare(unit, place_.index, grid());
    keep(own.begin * bytes, own.end * bytes);
    for (const BlockRange& others : OthersShare(unit, place_.index, grid())) {
      for (const ValueRun& run : ValueRuns(layout(), others)) {
        if (run.masters != masters) continue;
        Segment::Range away;
        if (spec_.IsGathered(static_cast<int>(u)))
          away = WholePages(run.blocks.begin * bytes, run.blocks.end * bytes);
        keep(run.blocks.begin * bytes, away.bytes > 0 ? away.begin : run.blocks.end * bytes);
        if (away.bytes > 0) keep(away.begin + away.bytes, run.blocks.end * bytes);
      }
    }
  }
  std::sort(kept.begin(), kept.end(),
            [](const Segment::Range& a, const Segment::Range& b) { return a.begin < b.begin; });
  return kept;
}

absl::Status JobMemory::GiveBackInitial() {
  absl::Status status;
  for (const bool masters : {true, false}) {
    const Segment& segment = masters ? planes_[0] : compute_;
    if (segment.data() == nullptr) continue;
    int64_t at = 0;
    const auto give = [&](int64_t end) {
      if (at < end) status.Update(segment.GiveBackRange(*dir_, {at, end - at}));
    };
    for (const Segment::Range& kept : KeptParameters(masters)) {
      give(kept.begin);
      at = std::max(at, kept.begin + kept.bytes);
    }
    give(segment.size());
  }
  return status;
}

std::vector<JobMemory::GatheredPart> JobMemory::GatheredParts(int unit) const {
  std::vector<GatheredPart> parts;
  for (const BlockRange& others : OthersShare(layout().units()[unit].blocks, place_.index, grid())) {
    for (const ValueRun& run : ValueRuns(layout(), others)) {
      const int64_t bytes = ParameterBlockBytes(run.masters);
      const Segment::Range away = WholePages(run.blocks.begin * bytes, run.blocks.end * bytes);
      if (away.bytes > 0) parts.push_back({run.masters ? &planes_[0] : &compute_, away});
    }
  }
  return parts;
}

absl::Status JobMemory::ReserveGathered(int unit) {
  for (const GatheredPart& part : GatheredParts(unit)) {
    if (absl::Status s = part.segment->ReserveRange(*dir_, part.range); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status JobMemory::FreeGathered(int unit) {
  absl::Status status;
  for (const GatheredPart& part : GatheredParts(unit)) {
    status.Update(part.segment->GiveBackRange(*dir_, part.range));
  }
  return status;
}

int64_t JobMemory::GatheredBytes(int unit) const {
  int64_t bytes = 0;
  for (const GatheredPart& part : GatheredParts(unit)) bytes += part.range.bytes;
  return bytes;
}

char* JobMemory::inbox(int host) const {
  if (inboxes_[host].data() == nullptr) return nullptr;
  return inboxes_[host].as<char>() + InboxMarkBytes();
}

std::atomic<uint64_t>& JobMemory::Received(int host, int unit) const {
  return inboxes_[host].as<std::atomic<uint64_t>>()[unit];
}

std::atomic<uint64_t>& JobMemory::ReceivedNothing(int host, int unit) const {
  return inboxes_[host].as<std::atomic<uint64_t>>()[layout().units().size() + unit];
}

}  // namespace sherd::runtime

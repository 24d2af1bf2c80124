#include "server/delivered_sources.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/kernel_types.h"

namespace sherd::server {
namespace {

absl::StatusOr<kernels::Source> OfRank(runtime::JobMemory& memory, Rank r, StepId id, int unit, int part) {
  const runtime::RankRecords& rank = memory.rank(r);
  const BlockRange blocks = memory.layout().units()[unit].blocks;
  const kernels::Source nothing{nullptr, 0};
  if (static_cast<int>(rank.Delivered(unit).PartsOf(id)) != part + 1) return nothing;
  const runtime::Delivery d = rank.ReadDelivery(unit);
  if (d.chunk == runtime::Delivery::kEmpty) return nothing;
  absl::StatusOr<absl::Span<char>> staging = memory.Staging(r, d.chunk);
  if (!staging.ok()) return staging.status();
  const uint64_t bytes = static_cast<uint64_t>(blocks.size() * memory.sizes().staging_block_bytes());
  if (d.offset % 64 != 0 || d.offset > staging->size() || staging->size() - d.offset < bytes) {
    return absl::DataLossError(absl::StrCat(
        "rank ", r.value(), " delivered unit ", unit, " at offset ", d.offset, " of ", staging->size(),
        " bytes of staging, which does not hold its ", bytes, " bytes; restart that trainer"));
  }
  return kernels::Source{staging->data() + d.offset, d.scale, runtime::KernelType(memory.spec().staging)};
}

kernels::Source OfHost(const runtime::JobMemory& memory, int host, StepId id, int unit, int part) {
  const Mark mark = Mark::Of(id, part + 1);
  if (!(Mark(memory.Received(host, unit).load(std::memory_order_acquire)) == mark)) return {nullptr, 0};
  if (Mark(memory.ReceivedNothing(host, unit).load(std::memory_order_acquire)) == mark) return {nullptr, 0};
  const int64_t begin = memory.layout().units()[unit].blocks.begin;
  return {memory.inbox(host) + begin * memory.wire_block_bytes(), 1,
          runtime::KernelType(memory.spec().reduction.wire)};
}

}  // namespace

absl::StatusOr<std::vector<kernels::Source>> DeliveredSources(runtime::JobMemory& memory, int world_size,
                                                              StepId id, int unit, int part) {
  std::vector<kernels::Source> sources;
  int host_before = -1;
  for (int r = 0; r < world_size; ++r) {
    const int host = memory.HostOf(Rank(r));
    if (host == memory.place().index) {
      absl::StatusOr<kernels::Source> source = OfRank(memory, Rank(r), id, unit, part);
      if (!source.ok()) return source.status();
      sources.push_back(*source);
    } else {
      sources.push_back(host != host_before ? OfHost(memory, host, id, unit, part)
                                            : kernels::Source{nullptr, 0});
    }
    host_before = host;
  }
  return sources;
}

}  // namespace sherd::server

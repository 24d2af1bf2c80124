#include "core/partition.h"

#include "absl/base/internal/raw_logging.h"
#include "absl/numeric/int128.h"

namespace sherd {
namespace {

// floor(a * b / c). REQUIRES: a, b >= 0, c > 0, and the result fits.
int64_t MulDiv(int64_t a, int64_t b, int64_t c) {
  return static_cast<int64_t>(absl::int128(a) * absl::int128(b) / absl::int128(c));
}

}  // namespace

BlockRange Owned(BlockRange unit, Slot slot, int servers) {
  ABSL_RAW_CHECK(servers >= 1 && slot.value() >= 0 && slot.value() < servers, "slot outside 0..servers-1");
  ABSL_RAW_CHECK(unit.begin <= unit.end, "unit ends before it begins");
  const int64_t blocks = unit.size();
  return {unit.begin + MulDiv(slot.value(), blocks, servers),
          unit.begin + MulDiv(int64_t{slot.value()} + 1, blocks, servers)};
}

Slot OwnerOf(BlockRange unit, int64_t block, int servers) {
  ABSL_RAW_CHECK(servers >= 1, "no servers");
  ABSL_RAW_CHECK(unit.begin <= block && block < unit.end, "block outside its unit");
  // The least r with (r+1)B/M > b, b counted within the unit: (r+1)B >= (b+1)M, so r = ceil((b+1)M / B) - 1.
  const absl::int128 scaled = absl::int128(block - unit.begin + 1) * absl::int128(servers) - 1;
  return Slot(static_cast<int32_t>(scaled / absl::int128(unit.size())));
}

std::vector<UnitRange> OwnedRanges(const Layout& layout, Slot slot, int servers) {
  std::vector<UnitRange> ranges;
  const std::vector<UnitInfo>& units = layout.units();
  for (size_t u = 0; u < units.size(); ++u) {
    const BlockRange blocks = Owned(units[u].blocks, slot, servers);
    if (!blocks.empty()) ranges.push_back({static_cast<int>(u), blocks});
  }
  return ranges;
}

}  // namespace sherd

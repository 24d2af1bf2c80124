#include "server/block_runs.h"

#include <algorithm>

namespace sherd::server {

std::vector<BlockRun> SplitRuns(const Layout& layout, const std::vector<UnitRange>& ranges) {
  std::vector<BlockRun> runs;
  for (const UnitRange& r : ranges) {
    layout.ForEachRun(r.blocks, [&](int tensor, BlockRange run) {
      for (int64_t b = run.begin; b < run.end; b += kRunBlocks)
        runs.push_back({tensor, {b, std::min(b + kRunBlocks, run.end)}});
    });
  }
  return runs;
}

}  // namespace sherd::server

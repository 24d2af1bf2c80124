// Own blocks cut into pieces of work: consecutive blocks of one tensor.
#ifndef SHERD_SERVER_BLOCK_RUNS_H_
#define SHERD_SERVER_BLOCK_RUNS_H_

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/partition.h"

namespace sherd::server {

// Blocks a worker takes at a time: 256 KiB of each plane.
inline constexpr int64_t kRunBlocks = 256;

struct BlockRun {
  int tensor;
  BlockRange blocks;
};

// The blocks of `ranges`, in order, at most kRunBlocks to a run.
std::vector<BlockRun> SplitRuns(const Layout& layout, const std::vector<UnitRange>& ranges);

}  // namespace sherd::server

#endif  // SHERD_SERVER_BLOCK_RUNS_H_

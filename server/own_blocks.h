// What of a tensor a host of a job owns: in a job of one host all of it.
#ifndef SHERD_SERVER_OWN_BLOCKS_H_
#define SHERD_SERVER_OWN_BLOCKS_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/host_map.h"
#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::server {

inline BlockRange BlocksOn(int host, const runtime::JobMemory& memory, const TensorInfo& tensor) {
  const BlockRange own = HostShare(memory.layout().units()[tensor.unit].blocks, host, memory.grid());
  const int64_t begin = std::max(own.begin, tensor.blocks.begin);
  return {begin, std::max(begin, std::min(own.end, tensor.blocks.end))};
}
// This host's.
inline BlockRange OwnBlocks(const runtime::JobMemory& memory, const TensorInfo& tensor) {
  return BlocksOn(memory.place().index, memory, tensor);
}
// The same in elements of the flattened tensor, end not included.
inline std::pair<int64_t, int64_t> ElementsOn(int host, const runtime::JobMemory& memory,
                                              const TensorInfo& tensor) {
  const BlockRange blocks = BlocksOn(host, memory, tensor);
  if (blocks.empty()) return {0, 0};
  return {(blocks.begin - tensor.blocks.begin) * kBlockElements,
          std::min(tensor.numel, (blocks.end - tensor.blocks.begin) * kBlockElements)};
}

}  // namespace sherd::server

#endif  // SHERD_SERVER_OWN_BLOCKS_H_

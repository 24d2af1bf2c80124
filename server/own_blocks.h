// What of a tensor this host of a job owns: in a job of one host all of it.
#ifndef SHERD_SERVER_OWN_BLOCKS_H_
#define SHERD_SERVER_OWN_BLOCKS_H_

#include <algorithm>

#include "core/host_map.h"
#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::server {

inline BlockRange OwnBlocks(const runtime::JobMemory& memory, const TensorInfo& tensor) {
  const runtime::HostPlace place = memory.place();
  const BlockRange own = HostShare(memory.layout().units()[tensor.unit].blocks, place.index, place.count);
  const int64_t begin = std::max(own.begin, tensor.blocks.begin);
  return {begin, std::max(begin, std::min(own.end, tensor.blocks.end))};
}

}  // namespace sherd::server

#endif  // SHERD_SERVER_OWN_BLOCKS_H_

// The pre-update phase of optimizers that need something of whole tensors (kernels::OptimizerInfo): it stands
// in memory before any owner changes a block.
#ifndef SHERD_SERVER_PRE_UPDATE_H_
#define SHERD_SERVER_PRE_UPDATE_H_

#include <vector>

#include "absl/status/status.h"
#include "core/partition.h"
#include "core/step_records.h"
#include "runtime/job_memory.h"
#include "server/worker_pool.h"

namespace sherd::server {

// Writes JobMemory::block_norms of all own blocks that the verdict updates, or JobMemory::directions of the
// matrices whose first block is one of the own. Reads planes and gradients alone, of a matrix the whole: all
// owners are PREPARED, and none has stored anything of the step, so it can be done again. Publishes nothing.
// Blocks while it works. INTERNAL as UpdatesOf.
absl::Status PreUpdate(runtime::JobMemory& memory, const Verdict& verdict,
                       const std::vector<UnitRange>& ranges, WorkerPool* pool);

}  // namespace sherd::server

#endif  // SHERD_SERVER_PRE_UPDATE_H_

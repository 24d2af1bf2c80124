// Who of a job's trainers is there, as its memory says.
#ifndef SHERD_SERVER_TRAINERS_H_
#define SHERD_SERVER_TRAINERS_H_

#include <atomic>
#include <cstdint>

#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::server::internal {

// Whether a step may be under way, or begin.
inline bool AnyTrainerAttached(runtime::JobMemory& memory) {
  for (int r = 0; r < memory.places(); ++r) {
    // A dead trainer's gradients of the step in hand may be in use: its place is not given up.
    const uint32_t state = memory.trainer(Rank(r)).state.load(std::memory_order_acquire);
    if (state == runtime::MemberEntry::kAttached || state == runtime::MemberEntry::kDead) return true;
  }
  return false;
}

}  // namespace sherd::server::internal

#endif  // SHERD_SERVER_TRAINERS_H_

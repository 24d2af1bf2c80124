// What all owners of a job have carried out of what was proposed to them.
#ifndef SHERD_SERVER_DECIDED_H_
#define SHERD_SERVER_DECIDED_H_

#include <algorithm>
#include <optional>

#include "core/step_records.h"
#include "runtime/job_memory.h"

namespace sherd::server::internal {

// What every owner of the assignment in force has carried out.
inline Proposals DecidedByAll(runtime::JobMemory& memory) {
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  Proposals least;
  for (int m = 0; a.has_value() && m < a->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
    const Proposals d = owner.ok() ? (*owner)->Decided() : Proposals();
    least = m == 0 ? d
                   : Proposals{std::min(least.ranges, d.ranges), std::min(least.snapshot, d.snapshot),
                               std::min(least.import, d.import)};
  }
  return least;
}

}  // namespace sherd::server::internal

#endif  // SHERD_SERVER_DECIDED_H_

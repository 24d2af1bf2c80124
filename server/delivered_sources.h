// What is added up for one part of a unit: deliveries of this host's ranks, and partial sums of other hosts.
//
//   auto all = DeliveredSources(*memory, world_size, id, unit, part);   // one for each rank, null: nothing
//
// Thread-safe. Pointers stand until the part has been consumed.
#ifndef SHERD_SERVER_DELIVERED_SOURCES_H_
#define SHERD_SERVER_DELIVERED_SOURCES_H_

#include <vector>

#include "absl/status/statusor.h"
#include "core/mark.h"
#include "kernels/reduce.h"
#include "runtime/job_memory.h"

namespace sherd::server {

// By rank: where its delivery of the whole unit lies, or null if it contributes nothing. Another host's
// partial sum stands in the place of its first rank. A mark of later parts means that all owners consumed
// this one: then it is null too, and nothing is read.
//   DATA_LOSS  a rank's delivery lies outside its staging; the message names rank and unit
absl::StatusOr<std::vector<kernels::Source>> DeliveredSources(runtime::JobMemory& memory, int world_size,
                                                              StepId id, int unit, int part);

// Bytes of one block of a source.
inline int64_t BlockBytesOf(const kernels::Source& source) {
  return kernels::kBlockElements * (source.dtype == kernels::DType::kFloat32 ? 4 : 2);
}

}  // namespace sherd::server

#endif  // SHERD_SERVER_DELIVERED_SOURCES_H_

// What the update of each tensor needs at one step, from the verdict and the tensor's own count of updates.
#ifndef SHERD_SERVER_UPDATE_SCALARS_H_
#define SHERD_SERVER_UPDATE_SCALARS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "core/partition.h"
#include "core/step_records.h"
#include "kernels/muon.h"
#include "kernels/optimizer.h"
#include "runtime/job_memory.h"

namespace sherd::server {

struct TensorUpdate {
  kernels::Scalars scalars{};
  // Of optimizers with directions, where the group asks for them and the tensor has at least two dimensions:
  // it is updated as a matrix of the first by the rest, along JobMemory::directions.
  int ns_steps = 0;  // 0: not so
  int64_t rows = 0, columns = 0;
  kernels::MuonScalars muon{};
};

// The verdict updates this tensor, and so all of its blocks.
bool Updates(const runtime::JobMemory& memory, const Verdict& verdict, int tensor);

// By tensor, filled in for those that the verdict updates and that have blocks in `ranges`. Counts of updates
// are those before the step plus one. `with_trust`: the learning rate is multiplied by the tensor's trust
// ratio, from the block norms of the step, which all owners have published (PHASED): summed over the whole
// tensor's blocks in order, so every owner gets the same whatever part of it is its own.
//   INTERNAL  a tensor's group is not in the verdict
absl::StatusOr<std::vector<TensorUpdate>> UpdatesOf(const runtime::JobMemory& memory, const Verdict& verdict,
                                                    const std::vector<UnitRange>& ranges, bool with_trust);

}  // namespace sherd::server

#endif  // SHERD_SERVER_UPDATE_SCALARS_H_

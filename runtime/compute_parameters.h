// The one rule by which parameters in 16 bits follow from the fp32 masters, for those who write them: owners
// as they update, and rank 0 with the initial values.
//
//   RoundToCompute(spec, memory.plane(0), {block, block + 1}, tensor_updates, memory.compute());
//
// To nearest even; or with JobSpec::stochastic_rounding, once a tensor was updated, stochastically with noise
// keyed by (rounding_seed, the tensor's count of updates, element). So they are a function of what a
// checkpoint holds: whoever rounds again, after a death or a restore, gets the same bits.
#ifndef SHERD_RUNTIME_COMPUTE_PARAMETERS_H_
#define SHERD_RUNTIME_COMPUTE_PARAMETERS_H_

#include <cstdint>

#include "core/job_spec.h"
#include "core/types.h"

namespace sherd::runtime {

// Rounds `blocks` (of the whole layout) of a tensor that was updated `updates` times. `masters` and `compute`
// are whole planes, aligned to 64 bytes. REQUIRES: spec.compute has 16 bits. Thread-safe for disjoint blocks.
void RoundToCompute(const JobSpec& spec, const float* masters, BlockRange blocks, uint64_t updates,
                    uint16_t* compute);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_COMPUTE_PARAMETERS_H_

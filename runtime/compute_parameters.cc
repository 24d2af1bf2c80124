#include "runtime/compute_parameters.h"

#include "kernels/convert.h"
#include "runtime/kernel_types.h"

namespace sherd::runtime {

void RoundToCompute(const JobSpec& spec, const float* masters, BlockRange blocks, uint64_t updates,
                    uint16_t* compute) {
  const float* const from = masters + blocks.begin * kBlockElements;
  uint16_t* const to = compute + blocks.begin * kBlockElements;
  if (spec.stochastic_rounding && updates > 0) {
    kernels::RoundBlocks(from, blocks.begin, blocks.size(), KernelType(spec.compute), to,
                         {spec.rounding_seed, updates});
  } else {
    kernels::FromFloat(from, blocks.size() * kBlockElements, KernelType(spec.compute), to);
  }
}

}  // namespace sherd::runtime

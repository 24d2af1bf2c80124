#include "core/job_sizes.h"

#include <algorithm>

namespace sherd {

JobSizes::JobSizes(const JobSpec& spec)
    : total_blocks_(spec.layout.total_blocks()),
      tensors_(static_cast<int64_t>(spec.layout.tensors().size())),
      compute_block_bytes_(spec.compute == DType::kFloat32 ? 0 : kBlockElements * SizeOf(spec.compute)),
      staging_block_bytes_(kBlockElements * SizeOf(spec.staging)),
      ring_(spec.stage >= 2) {
  const kernels::OptimizerInfo* optimizer = kernels::FindOptimizer(spec.optimizer);
  norms_ = optimizer != nullptr && optimizer->norms;
  directions_ = optimizer != nullptr && optimizer->directions;
  for (const UnitInfo& unit : spec.layout.units()) {
    largest_unit_blocks_ = std::max(largest_unit_blocks_, unit.blocks.size());
    bool trainable = false;
    for (int t = unit.first_tensor; t < unit.end_tensor; ++t) {
      trainable |= spec.layout.tensors()[t].spec.trainable;
    }
    if (trainable) trainable_blocks_ = std::max(trainable_blocks_, unit.blocks.end);
  }
}

int64_t JobSizes::staging_bytes(int64_t ring_bytes) const {
  const int64_t whole = trainable_blocks_ * staging_block_bytes_;
  if (!ring_) return whole;
  const int64_t largest = largest_unit_blocks_ * staging_block_bytes_;
  return std::min(whole, ring_bytes > 0 ? std::max(ring_bytes, largest) : 2 * largest);
}

}  // namespace sherd

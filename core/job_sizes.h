// How many bytes a job's shared memory takes, piece by piece: what runtime/job_memory.h and the trainers
// reserve, and what core/memory_plan.h foretells.
//
//   const JobSizes sizes(spec);
//   sizes.plane_bytes(0) + sizes.grad_bytes() + sizes.stamps_bytes() ...
//
// Pure; thread-safe. REQUIRES of all: Validate(spec).
#ifndef SHERD_CORE_JOB_SIZES_H_
#define SHERD_CORE_JOB_SIZES_H_

#include <cstdint>

#include "core/job_spec.h"
#include "core/types.h"

namespace sherd {

// Bytes of one block of a fp32 plane.
inline constexpr int64_t kBlockBytes = kBlockElements * 4;

class JobSizes {
 public:
  explicit JobSizes(const JobSpec& spec);

  // Blocks that planes other than param and grad reach: frozen units stand at the end and have none.
  int64_t trainable_blocks() const { return trainable_blocks_; }
  int64_t plane_blocks(int plane) const { return plane == 0 ? total_blocks_ : trainable_blocks_; }
  // Segment plane.<name>. Plane 0 is param, 1 + i the optimizer's plane i.
  int64_t plane_bytes(int plane) const { return plane_blocks(plane) * kBlockBytes; }
  // Segment plane.compute: the parameters as trainers compute with them, in 16 bits; 0 in an fp32 job.
  int64_t compute_bytes() const { return compute_block_bytes_ * total_blocks_; }
  // Of one block of gradients on their way.
  int64_t staging_block_bytes() const { return staging_block_bytes_; }
  // Segment grad.
  int64_t grad_bytes() const { return trainable_blocks_ * kBlockBytes; }

  // Segment directions: the step's directions of whole matrices, for optimizers that have them; else 0.
  int64_t directions_bytes() const { return directions_ ? grad_bytes() : 0; }

  // Segment stamps: reduce stamps and sums of squares per trainable block, apply stamps per block, update
  // counts per tensor and of the job twice; for optimizers that take norms of whole tensors, two more sums
  // per trainable block. Each area from a cache line on.
  int64_t sumsq_at() const { return Aligned(trainable_blocks_ * 8); }
  int64_t apply_at() const { return 2 * sumsq_at(); }
  int64_t steps_at() const { return apply_at() + Aligned(total_blocks_ * 8); }
  int64_t steps_bytes() const { return Aligned((tensors_ + 1) * 8); }  // of one of the two
  int64_t norms_at() const { return steps_at() + 2 * steps_bytes(); }
  int64_t stamps_bytes() const { return norms_at() + (norms_ ? Aligned(trainable_blocks_ * 16) : 0); }

  // What a trainer reserves of staging at first: the whole model in stages 0 and 1; in stages 2 and 3 a ring
  // of two units, or of `ring_bytes` if that is more than one (0: two units), and never more than the model.
  // Grows when a step needs more at once.
  int64_t staging_bytes(int64_t ring_bytes = 0) const;

 private:
  static int64_t Aligned(int64_t n) { return (n + 63) / 64 * 64; }

  int64_t total_blocks_ = 0, trainable_blocks_ = 0, largest_unit_blocks_ = 0, tensors_ = 0;
  int64_t compute_block_bytes_ = 0, staging_block_bytes_ = kBlockBytes;
  bool ring_ = false, norms_ = false, directions_ = false;
};

}  // namespace sherd

#endif  // SHERD_CORE_JOB_SIZES_H_

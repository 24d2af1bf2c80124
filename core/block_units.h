// The units of a stage-3 layout: tensors of one block of the model (what is gathered and released together)
// stand next to each other, in units of their own.
//
//   BlockUnits u = PackBlocks(specs, {0, 0, 1, kNoBlock}, 4 << 20, PersistenceLimits());
//   Layout::Create(u.units);            // u.block_of_unit[3] == 1: the unit's tensors are block 1's
//
// A block may be several units: gradients leave by units of at most `bucket_elements` (PackUnits), and
// tensors that are too small to be worth releasing stand apart from the others.
#ifndef SHERD_CORE_BLOCK_UNITS_H_
#define SHERD_CORE_BLOCK_UNITS_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "core/layout.h"

namespace sherd {

inline constexpr int kNoBlock = -1;

// In elements; names and defaults are those of zero_optimization.
struct PersistenceLimits {
  // stage3_param_persistence_threshold: a tensor of at most so many is never released...
  int64_t tensor = 100000;
  // stage3_model_persistence_threshold: ... as long as all those together, in the given order, are at most so
  // many.
  int64_t model = std::numeric_limits<int64_t>::max();
};

struct BlockUnits {
  std::vector<std::vector<TensorSpec>> units;  // trainable ones first
  std::vector<int> block_of_unit;              // kNoBlock: of tensors that belong to no block
  std::vector<bool> persistent;                // per unit; those of no block always are
};

// `block_of[i]` is the block of tensor i, or kNoBlock. Blocks come in the order of their first tensor.
// REQUIRES: equal lengths.
BlockUnits PackBlocks(const std::vector<TensorSpec>& in_gradient_order, const std::vector<int>& block_of,
                      int64_t bucket_elements, const PersistenceLimits& limits);

}  // namespace sherd

#endif  // SHERD_CORE_BLOCK_UNITS_H_

#include "core/block_units.h"

#include <map>
#include <utility>

namespace sherd {

BlockUnits PackBlocks(const std::vector<TensorSpec>& in_gradient_order, const std::vector<int>& block_of,
                      int64_t bucket_elements, const PersistenceLimits& limits) {
  std::vector<int> blocks;  // in order
  struct Tensors {
    std::vector<TensorSpec> released, persistent;
  };
  std::map<int, Tensors> tensors;
  int64_t resident = 0;
  for (size_t i = 0; i < in_gradient_order.size(); ++i) {
    const TensorSpec& spec = in_gradient_order[i];
    const int block = block_of[i];
    if (tensors.find(block) == tensors.end()) blocks.push_back(block);
    Tensors& t = tensors[block];
    // One of an invalid shape is for Layout::Create to name.
    const int64_t numel = CountElements(spec.shape).value_or(0);
    const bool small = numel <= limits.tensor && numel <= limits.model - resident;
    if (small && block != kNoBlock) resident += numel;
    (small || block == kNoBlock ? t.persistent : t.released).push_back(spec);
  }
  BlockUnits out;
  for (const bool trainable : {true, false}) {
    for (const int block : blocks) {
      for (const bool persistent : {false, true}) {
        const Tensors& t = tensors[block];
        std::vector<TensorSpec> some;
        for (const TensorSpec& spec : persistent ? t.persistent : t.released) {
          if (spec.trainable == trainable) some.push_back(spec);
        }
        for (std::vector<TensorSpec>& unit : PackUnits(std::move(some), bucket_elements)) {
          out.units.push_back(std::move(unit));
          out.block_of_unit.push_back(block);
          out.persistent.push_back(persistent);
        }
      }
    }
  }
  return out;
}

}  // namespace sherd

// The one order in which a block's sum of squares is added up on every instruction set. The GPU does the same
// with shuffles: cuda/reduce.cu.
#ifndef SHERD_KERNELS_LANE_TREE_H_
#define SHERD_KERNELS_LANE_TREE_H_

#include "kernels/block.h"

namespace sherd {
namespace kernels {

// Adds the lanes as a binary tree: lane l takes lane l + 8, then l + 4, l + 2, l + 1. Overwrites `lanes`.
// A different order would round differently, and then the gradient norm would depend on the machine.
inline double SumLanes(double (&lanes)[kNormLanes]) {
  for (int width = kNormLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_LANE_TREE_H_

// Internal to kernels/: the SIMD implementations, indexed as AllOptimizers.
#ifndef SHERD_KERNELS_OPTIMIZER_SIMD_H_
#define SHERD_KERNELS_OPTIMIZER_SIMD_H_

#include "kernels/optimizer.h"

namespace sherd {
namespace kernels {

// What the instruction set chosen at run time offers for `kind`. REQUIRES: a known kind (aborts otherwise).
struct SimdFunctions {
  UpdateFn update;
  JournaledUpdateFn update_journaled;
  SaveFn save;
  TwoPasses passes;
};
SimdFunctions ResolveSimd(OptimizerKind kind);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_OPTIMIZER_SIMD_H_

// Arithmetic on one float, as the expressions of the optimizers see it. The SIMD twin is in
// optimizer_simd.cc.
#ifndef SHERD_KERNELS_OPS_H_
#define SHERD_KERNELS_OPS_H_

#include <cmath>

#include "kernels/block.h"

namespace sherd {
namespace kernels {

// Each operation rounds once, to nearest. On the GPU the intrinsics say so; on the CPU the build does
// (-ffp-contract=off), and the tests would notice.
struct FloatOps {
  using V = float;
  static SHERD_HOST_DEVICE V Set(float x) { return x; }
  // -1, 0 or 1; 0 for a NaN.
  static SHERD_HOST_DEVICE V Sign(V a) { return (a > 0.0f ? 1.0f : 0.0f) - (a < 0.0f ? 1.0f : 0.0f); }
#if defined(__CUDA_ARCH__)
  static SHERD_HOST_DEVICE V Add(V a, V b) { return __fadd_rn(a, b); }
  static SHERD_HOST_DEVICE V Sub(V a, V b) { return __fsub_rn(a, b); }
  static SHERD_HOST_DEVICE V Mul(V a, V b) { return __fmul_rn(a, b); }
  static SHERD_HOST_DEVICE V Div(V a, V b) { return __fdiv_rn(a, b); }
  static SHERD_HOST_DEVICE V Sqrt(V a) { return __fsqrt_rn(a); }
#else
  static SHERD_HOST_DEVICE V Add(V a, V b) { return a + b; }
  static SHERD_HOST_DEVICE V Sub(V a, V b) { return a - b; }
  static SHERD_HOST_DEVICE V Mul(V a, V b) { return a * b; }
  static SHERD_HOST_DEVICE V Div(V a, V b) { return a / b; }
  static SHERD_HOST_DEVICE V Sqrt(V a) { return std::sqrt(a); }
#endif
};

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_OPS_H_

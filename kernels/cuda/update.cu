#include <cmath>
#include <string>

#include "kernels/cuda/launch.h"
#include "kernels/ops.h"

namespace sherd {
namespace kernels {
namespace cuda {
namespace {

#include "kernels/optimizers.inc"

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // one 16-byte access to each array

__device__ uint16_t Rounded(const HalfStore& half, float value, int64_t element) {
  if (!half.stochastic) return half.dtype == DType::kBFloat16 ? Bf16FromFloat(value) : Fp16FromFloat(value);
  const uint32_t noise = Noise(half.seed, half.first_block * kBlockElements + element);
  return half.dtype == DType::kBFloat16 ? Bf16FromFloatDithered(value, noise)
                                        : Fp16FromFloatDithered(value, noise);
}

// kHalf: with half.to.
template <class Optimizer, bool kHalf>
__global__ void __launch_bounds__(kThreads)
    Update(UpdateArgs args, Scalars s, int64_t groups, HalfStore half) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= groups) return;
  // Row 0 is the parameter, then the planes; rows that this optimizer lacks stay zero.
  float rows[1 + kMaxPlanes][kPerThread] = {};
  float grad[kPerThread];
  float4* const to[] = {reinterpret_cast<float4*>(args.param), reinterpret_cast<float4*>(args.planes[0]),
                        reinterpret_cast<float4*>(args.planes[1]), reinterpret_cast<float4*>(args.planes[2])};
#pragma unroll
  for (int k = 0; k <= kPlanesOf<Optimizer>; ++k) {
    const float4 x = to[k][group];
    rows[k][0] = x.x, rows[k][1] = x.y, rows[k][2] = x.z, rows[k][3] = x.w;
  }
  const float4 g = reinterpret_cast<const float4*>(args.grad)[group];
  grad[0] = g.x, grad[1] = g.y, grad[2] = g.z, grad[3] = g.w;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    Optimizer::template Update<FloatOps>(s, grad[j], rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
  }
#pragma unroll
  for (int k = 0; k <= kPlanesOf<Optimizer>; ++k) {
    to[k][group] = make_float4(rows[k][0], rows[k][1], rows[k][2], rows[k][3]);
  }
  if constexpr (kHalf) {
    ushort4 h;
    h.x = Rounded(half, rows[0][0], kPerThread * group),
    h.y = Rounded(half, rows[0][1], kPerThread * group + 1);
    h.z = Rounded(half, rows[0][2], kPerThread * group + 2),
    h.w = Rounded(half, rows[0][3], kPerThread * group + 3);
    reinterpret_cast<ushort4*>(half.to)[group] = h;
  }
}

template <class Optimizer>
bool LaunchIf(OptimizerKind kind, const UpdateArgs& args, const Scalars& scalars, int64_t elements,
              cudaStream_t stream, const HalfStore& half) {
  if (kind != Optimizer::kKind) return false;
  const int64_t groups = elements / kPerThread;
  const unsigned grid = static_cast<unsigned>((groups + kThreads - 1) / kThreads);
  const auto update = half.to == nullptr ? &Update<Optimizer, false> : &Update<Optimizer, true>;
  if (grid > 0) update<<<grid, kThreads, 0, stream>>>(args, scalars, groups, half);
  return true;
}

template <class... Optimizers>
bool LaunchAny(OptimizerKind kind, const UpdateArgs& args, const Scalars& scalars, int64_t elements,
               cudaStream_t stream, const HalfStore& half, OptimizerList<Optimizers...>) {
  return (LaunchIf<Optimizers>(kind, args, scalars, elements, stream, half) || ...);
}

}  // namespace

cudaError_t LaunchUpdate(OptimizerKind kind, const UpdateArgs& args, const Scalars& scalars, int64_t elements,
                         cudaStream_t stream, const HalfStore& half) {
  if (half.to != nullptr && half.dtype != DType::kBFloat16 && half.dtype != DType::kFloat16) {
    return cudaErrorInvalidValue;
  }
  if (elements < 0 || elements % kBlockElements != 0 || elements >= int64_t{1} << 41)
    return cudaErrorInvalidValue;
  if (!LaunchAny(kind, args, scalars, elements, stream, half, AllOptimizers())) return cudaErrorInvalidValue;
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace kernels
}  // namespace sherd

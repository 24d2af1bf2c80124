#include "kernels/cuda/launch.h"
#include "kernels/half.h"
#include "kernels/ops.h"

namespace sherd {
namespace kernels {
namespace cuda {
namespace {

// The live sources, in order.
struct SourceTable {
  const void* data[kMaxSources];
  float scale[kMaxSources];
  int count;
};

// As fp32 whatever the source holds.
template <DType kDType>
__device__ float LoadSource(const void* data, int64_t i) {
  if constexpr (kDType == DType::kFloat32) {
    return static_cast<const float*>(data)[i];
  } else {
    const uint16_t half = static_cast<const uint16_t*>(data)[i];
    return kDType == DType::kBFloat16 ? FloatFromBf16(half) : FloatFromFp16(half);
  }
}

// One thread block per block, one thread per element.
template <DType kDType>
__global__ void __launch_bounds__(kBlockElements)
    Reduce(SourceTable sources, bool accumulate, float* __restrict__ out, double* __restrict__ block_sumsq) {
  __shared__ double squares[kBlockElements];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockElements + threadIdx.x;
  float t = 0;
  for (int k = 0; k < sources.count; ++k) {
    const float x = FloatOps::Mul(LoadSource<kDType>(sources.data[k], i), sources.scale[k]);
    t = k == 0 ? x : FloatOps::Add(t, x);
  }
  if (accumulate) t = FloatOps::Add(out[i], t);
  out[i] = t;
  squares[threadIdx.x] = __dmul_rn(t, t);
  __syncthreads();
  if (threadIdx.x >= kNormLanes) return;
  // Lane l takes elements l, l + 16, ... in order, then the lanes are added as SumLanes does.
  double sum = 0;
  for (int j = threadIdx.x; j < kBlockElements; j += kNormLanes) sum = __dadd_rn(sum, squares[j]);
  for (int width = kNormLanes / 2; width > 0; width /= 2) {
    sum = __dadd_rn(sum, __shfl_down_sync((1u << kNormLanes) - 1, sum, width, kNormLanes));
  }
  if (threadIdx.x == 0) block_sumsq[blockIdx.x] = sum;
}

}  // namespace

cudaError_t LaunchReduceBlocks(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                               double* block_sumsq, cudaStream_t stream) {
  if (n < 0 || n > kMaxSources || blocks < 0 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  SourceTable table = {};
  DType dtype = DType::kFloat32;
  for (int k = 0; k < n; ++k) {
    if (sources[k].data == nullptr) continue;
    if (table.count > 0 && sources[k].dtype != dtype) return cudaErrorInvalidValue;
    dtype = sources[k].dtype;
    table.data[table.count] = sources[k].data;
    table.scale[table.count++] = sources[k].scale;
  }
  const auto reduce = dtype == DType::kFloat32    ? &Reduce<DType::kFloat32>
                      : dtype == DType::kBFloat16 ? &Reduce<DType::kBFloat16>
                                                  : &Reduce<DType::kFloat16>;
  reduce<<<static_cast<unsigned>(blocks), kBlockElements, 0, stream>>>(table, accumulate, out, block_sumsq);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace kernels
}  // namespace sherd

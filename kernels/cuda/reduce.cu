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

// Stores the sum of an element and takes the norm of its block, all threads of it together.
__device__ void StoreWithNorm(float t, int64_t i, bool accumulate, float* __restrict__ out,
                              double* __restrict__ block_sumsq) {
  __shared__ double squares[kBlockElements];
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

// One thread block per block, one thread per element.
template <DType kDType>
__global__ void __launch_bounds__(kBlockElements)
    Reduce(SourceTable sources, bool accumulate, float* __restrict__ out, double* __restrict__ block_sumsq) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockElements + threadIdx.x;
  float t = 0;
  for (int k = 0; k < sources.count; ++k) {
    const float x = FloatOps::Mul(LoadSource<kDType>(sources.data[k], i), sources.scale[k]);
    t = k == 0 ? x : FloatOps::Add(t, x);
  }
  StoreWithNorm(t, i, accumulate, out, block_sumsq);
}

// The live sources of all groups, in order, and where each group ends.
struct GroupTable {
  SourceTable sources;
  DType dtype[kMaxSources];
  bool last[kMaxSources];  // of its group
};

template <DType kWire>
__device__ float Rounded(float x) {
  if constexpr (kWire == DType::kBFloat16) return FloatFromBf16(Bf16FromFloat(x));
  if constexpr (kWire == DType::kFloat16) return FloatFromFp16(Fp16FromFloat(x));
  return x;
}

template <DType kWire>
__global__ void __launch_bounds__(kBlockElements)
    ReduceTree(GroupTable table, bool accumulate, float* __restrict__ out, double* __restrict__ block_sumsq) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockElements + threadIdx.x;
  float t = 0, partial = 0;
  bool begun = false, started = false;  // the partial sum; the whole
  for (int k = 0; k < table.sources.count; ++k) {
    const void* const data = table.sources.data[k];
    const float value = table.dtype[k] == DType::kFloat32    ? LoadSource<DType::kFloat32>(data, i)
                        : table.dtype[k] == DType::kBFloat16 ? LoadSource<DType::kBFloat16>(data, i)
                                                             : LoadSource<DType::kFloat16>(data, i);
    const float x = FloatOps::Mul(value, table.sources.scale[k]);
    partial = begun ? FloatOps::Add(partial, x) : x;
    begun = !table.last[k];
    if (begun) continue;
    const float rounded = Rounded<kWire>(partial);
    t = started ? FloatOps::Add(t, rounded) : rounded;
    started = true;
  }
  StoreWithNorm(t, i, accumulate, out, block_sumsq);
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

cudaError_t LaunchReduceGroups(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out,
                               int64_t blocks, double* block_sumsq, cudaStream_t stream) {
  if (n < 0 || blocks < 0 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  GroupTable table = {};
  int& count = table.sources.count;
  for (int g = 0; g < n; ++g) {
    const int first = count;
    for (int k = 0; k < groups[g].n; ++k) {
      const Source& source = groups[g].sources[k];
      if (source.data == nullptr) continue;
      if (count == kMaxSources) return cudaErrorInvalidValue;
      if (count > first && source.dtype != table.dtype[first]) return cudaErrorInvalidValue;
      table.dtype[count] = source.dtype;
      table.sources.data[count] = source.data;
      table.sources.scale[count++] = source.scale;
    }
    if (count > first) table.last[count - 1] = true;
  }
  const auto reduce = wire == DType::kFloat32    ? &ReduceTree<DType::kFloat32>
                      : wire == DType::kBFloat16 ? &ReduceTree<DType::kBFloat16>
                                                 : &ReduceTree<DType::kFloat16>;
  reduce<<<static_cast<unsigned>(blocks), kBlockElements, 0, stream>>>(table, accumulate, out, block_sumsq);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace kernels
}  // namespace sherd

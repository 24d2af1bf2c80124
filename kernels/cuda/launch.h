// The kernels on a CUDA device: the same contracts as reduce.h and optimizer.h, and the same bits.
//
//   LaunchReduceBlocks(sources, n, false, grad, blocks, block_sumsq, stream);
//   LaunchUpdate(OptimizerKind::kAdamW, args, Prepare(...), elements, stream);
//
// Built with --config=cuda alone. Pointers inside the arguments are device pointers; the arguments themselves
// are read before the call returns. Calls enqueue work on `stream` and do not wait for it, so results, and
// errors of the kernels themselves, appear in stream order. Thread-safe.
#ifndef SHERD_KERNELS_CUDA_LAUNCH_H_
#define SHERD_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/half.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "kernels/reduce_groups.h"

namespace sherd {
namespace kernels {
namespace cuda {

// Most sources of one LaunchReduceBlocks: their table travels as a kernel argument.
constexpr int kMaxSources = 128;

// As ReduceBlocks. `sources` is a host array. Returns cudaErrorInvalidValue if n is not in [0, kMaxSources],
// blocks is not in [0, 2^31), or a dtype is not supported; else the error of the launch.
cudaError_t LaunchReduceBlocks(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                               double* block_sumsq, cudaStream_t stream);

// As ReduceGroups. `groups` and their sources are host arrays. Returns cudaErrorInvalidValue as
// LaunchReduceBlocks, for all groups together; else the error of the launch.
cudaError_t LaunchReduceGroups(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out,
                               int64_t blocks, double* block_sumsq, cudaStream_t stream);

// Where the updated parameters also go, rounded: the compute parameters of mixed precision.
struct HalfStore {
  uint16_t* to = nullptr;  // null: nowhere
  DType dtype = DType::kBFloat16;
  bool stochastic = false;  // as RoundBlocks with `seed`; else as FromFloat
  NoiseSeed seed;
  int64_t first_block = 0;  // of the whole layout
};

// As the UpdateFn of `kind`, and in the same pass `half`. Returns cudaErrorInvalidValue if kind is unknown,
// elements is negative, not a multiple of kBlockElements, or 2^41 or more, or half.dtype is not a 16-bit one;
// else the error of the launch.
cudaError_t LaunchUpdate(OptimizerKind kind, const UpdateArgs& args, const Scalars& scalars, int64_t elements,
                         cudaStream_t stream, const HalfStore& half = HalfStore());

}  // namespace cuda
}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_CUDA_LAUNCH_H_

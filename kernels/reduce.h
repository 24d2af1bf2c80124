// Sums the gradients of all ranks and takes each block's norm in the same pass over memory.
//
//   Source sources[] = {{staging0, 0.5f}, {nullptr, 0.f}, {staging2, 0.5f}};      // rank 1 sent nothing
//   ReduceBlocks(sources, 3, /*accumulate=*/false, grad, blocks, block_sumsq, /*stream=*/true);
//   bool overflow = !std::isfinite(block_sumsq[b]);                            // an inf or a NaN in block b
//
// Thread-safe for disjoint ranges of `out`. Never blocks or allocates.
#ifndef SHERD_KERNELS_REDUCE_H_
#define SHERD_KERNELS_REDUCE_H_

#include <cstdint>

#include "kernels/block.h"
#include "kernels/source.h"

namespace sherd {
namespace kernels {

// For every element i of blocks * 256:
//   t = scale_0 * source_0[i] + scale_1 * source_1[i] + ...   in the order given; the first one that is not
//   null
//                                                             starts the sum; +0 when all are null
//   out[i] = accumulate ? out[i] + t : t
// and for every block b: block_sumsq[b] = the sum of squares of the 256 new values of out, in double.
//
// All arithmetic on elements is fp32 whatever the dtype (half.inc says what a 16-bit element is), each
// product and sum rounded by itself, so every instruction set gives the same bits, as does
// ReduceBlocksScalar. (Where two NaNs meet, which one's payload survives is not specified.) Squares of finite
// floats cannot overflow a double, so block_sumsq[b] is finite if and only if every element of the block is:
// that is the overflow flag. A scale of 1 everywhere costs no multiplication.
//
// `stream` writes `out` past the caches (non-temporal stores, fenced before return): right when nobody reads
// it soon and it is larger than the cache.
//
// REQUIRES: all pointers aligned to 64 bytes (block_sumsq to 8); out overlaps no source; n >= 0; blocks >= 0;
// all live sources of one dtype; not both accumulate and stream. Aborts otherwise.
void ReduceBlocks(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream);

// The same contract and the same bits from a plain loop: the reference for every other implementation.
void ReduceBlocksScalar(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                        double* block_sumsq, bool stream);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_REDUCE_H_

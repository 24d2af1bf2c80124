// The sum of a reduction tree of two levels, and the half of it that one host does for another.
//
//   const Source host0[] = {{staging0, 1.f}, {staging1, 1.f}};
//   const Source host1[] = {{inbox, 1.f, DType::kBFloat16}};     // a partial sum that has come ready-made
//   const SourceGroup groups[] = {{host0, 2}, {host1, 1}};
//   ReduceGroups(groups, 2, DType::kBFloat16, /*accumulate=*/false, grad, blocks, block_sumsq, true);
//
//   ReducePartial(host0, 2, DType::kBFloat16, outbox, blocks);         // what the other host is sent of it
//
// Thread-safe for disjoint ranges of the results. Never blocks or allocates.
#ifndef SHERD_KERNELS_REDUCE_GROUPS_H_
#define SHERD_KERNELS_REDUCE_GROUPS_H_

#include <cstdint>

#include "kernels/block.h"
#include "kernels/reduce.h"

namespace sherd {
namespace kernels {

// A group of sources, in order; borrowed for the call. Sources of one group are of one dtype, those of
// another may be of another.
struct SourceGroup {
  const Source* sources;
  int n;
};

// For every element i of blocks * 256 and each group g that has a source which is not null:
//   p_g = scale_0 * source_0[i] + scale_1 * source_1[i] + ...    as in ReduceBlocks
//   t   = round(p_0) + round(p_1) + ...                          in the order given; +0 when all are null
//   out[i] = accumulate ? out[i] + t : t
// and block_sumsq as in ReduceBlocks, whose overflow flag it is too. round goes to the nearest value of
// `wire` and back to fp32; with fp32 it does nothing. A partial sum from ReducePartial is a group of one
// source of dtype `wire` and scale 1, and gives the bits that its sources would have given in its place.
//
// REQUIRES as ReduceBlocks, of each group; n >= 0.
void ReduceGroups(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream);

// round(p) of one group, as elements of `wire`. REQUIRES as ReduceBlocks; at least one source is not null;
// `out` aligned to 64 bytes.
void ReducePartial(const Source* sources, int n, DType wire, void* out, int64_t blocks);

// The same contracts and the same bits from plain loops.
void ReduceGroupsScalar(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out,
                        int64_t blocks, double* block_sumsq, bool stream);
void ReducePartialScalar(const Source* sources, int n, DType wire, void* out, int64_t blocks);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_REDUCE_GROUPS_H_

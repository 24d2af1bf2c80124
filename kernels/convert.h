// Arrays of fp32 to and from bf16 and fp16: the bits of half.h, with SIMD.
//
//   FromFloat(master, kBlockElements, DType::kBFloat16, half);                 // to nearest even
//   RoundBlocks(master, block, 1, DType::kFloat16, half, {seed, step});        // stochastically
//   ToFloat(DType::kBFloat16, half, n, values);
//
// Thread-safe. Never blocks or allocates.
#ifndef SHERD_KERNELS_CONVERT_H_
#define SHERD_KERNELS_CONVERT_H_

#include <cstdint>

#include "kernels/block.h"
#include "kernels/half.h"

namespace sherd {
namespace kernels {

// `n` values of `from` as `dtype` (kFloat32: copied). Any alignment of the element's size; no overlap.
void FromFloat(const float* from, int64_t n, DType dtype, void* to);

// `n` values of `dtype` as fp32 (kFloat32: copied). Any alignment of the element's size; no overlap.
void ToFloat(DType dtype, const void* from, int64_t n, float* to);

// `n` values of one type as another, through fp32 where both have 16 bits. Any alignment; no overlap.
void Convert(DType from_type, const void* from, DType to_type, void* to, int64_t n);

// Rounds `blocks` blocks, the first of which is block `first_block` of the whole layout, stochastically:
// noise is keyed by seed, step and element alone, so whoever does it again gets the same bits. REQUIRES:
// dtype is not kFloat32 (aborts otherwise).
void RoundBlocks(const float* from, int64_t first_block, int64_t blocks, DType dtype, uint16_t* to,
                 const NoiseSeed& seed);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_CONVERT_H_

// fp32 to and from the two 16-bit types that checkpoints hold. Half values are uint16_t with the type's bits.
//
//   Bf16FromFloat(weights, absl::MakeSpan(halves));   // spans: SIMD
//   float one = FloatFromFp16(uint16_t{0x3C00});      // 1.0
//
// To 16 bits: round to nearest, ties to even; too large becomes infinity; subnormals are exact; a NaN stays a
// NaN, made quiet, with its sign and the upper bits of its payload. To fp32: exact, every bit of a NaN kept.
// The results do not depend on whether the processor flushes subnormals to zero. Thread-safe.
#ifndef SHERD_RUNTIME_FORMATS_HALF_H_
#define SHERD_RUNTIME_FORMATS_HALF_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/half.h"

namespace sherd::formats {

using kernels::Bf16FromFloat;
using kernels::FloatFromBf16;
using kernels::FloatFromFp16;
using kernels::Fp16FromFloat;

// The same over spans of equal size, which must not overlap. REQUIRES in.size() == out.size(): the program
// ends otherwise.
void Bf16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out);
void FloatFromBf16(absl::Span<const uint16_t> in, absl::Span<float> out);
void Fp16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out);
void FloatFromFp16(absl::Span<const uint16_t> in, absl::Span<float> out);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_HALF_H_

// fp32 to and from the two 16-bit types that checkpoints hold. Half values are uint16_t with the type's bits.
//
//   Bf16FromFloat(weights, absl::MakeSpan(halves));   // spans: loops the compiler vectorises
//   float one = FloatFromFp16(uint16_t{0x3C00});      // 1.0
//
// To 16 bits: round to nearest, ties to even; too large becomes infinity; subnormals are exact; a NaN stays a
// NaN, made quiet, with its sign and the upper bits of its payload. To fp32: exact, every bit of a NaN kept.
// The results do not depend on whether the processor flushes subnormals to zero. Thread-safe.
#ifndef SHERD_RUNTIME_FORMATS_HALF_H_
#define SHERD_RUNTIME_FORMATS_HALF_H_

#include <cstdint>
#include <cstring>

#include "absl/types/span.h"

namespace sherd::formats {

namespace half_internal {

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace half_internal

inline uint16_t Bf16FromFloat(float value) {
  const uint32_t bits = half_internal::BitsOf(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const uint32_t nan = bits >> 16 | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}

inline float FloatFromBf16(uint16_t half) {
  return half_internal::FloatOf(static_cast<uint32_t>(half) << 16);
}

// No branches: the three cases are computed and one is chosen.
inline uint16_t Fp16FromFloat(float value) {
  const uint32_t bits = half_internal::BitsOf(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  // Normal (from 2^-14): exponent bias 127 becomes 15; a carry out of the mantissa is right, up to infinity.
  const uint32_t normal = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  // Subnormal: numbers from 0.5 to 1 are 2^-24 apart, as fp16's subnormals are, so the addition rounds for
  // us. What a processor that flushes subnormals takes for 0 rounds to 0 anyway.
  const uint32_t subnormal = half_internal::BitsOf(half_internal::FloatOf(magnitude) + 0.5f) - 0x3F000000;
  const uint32_t nan = 0x7E00 | (magnitude >> 13 & 0x3FF);
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t large = magnitude > 0x7F800000 ? nan : 0x7C00;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000 ? large : finite));
}

inline float FloatFromFp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  const uint32_t normal = (magnitude << 13) + 0x38000000;
  const uint32_t special = (magnitude << 13) + 0x70000000;
  // 2^-14 and as many units of 2^-24, less 2^-14: every number in it is normal.
  const uint32_t subnormal =
      half_internal::BitsOf(half_internal::FloatOf((magnitude << 13) + 0x38800000) - 0x1p-14f);
  const uint32_t finite = magnitude < 0x400 ? subnormal : normal;
  return half_internal::FloatOf(sign | (magnitude >= 0x7C00 ? special : finite));
}

// The same over spans of equal size, which must not overlap. REQUIRES in.size() == out.size(): the program
// ends otherwise.
void Bf16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out);
void FloatFromBf16(absl::Span<const uint16_t> in, absl::Span<float> out);
void Fp16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out);
void FloatFromFp16(absl::Span<const uint16_t> in, absl::Span<float> out);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_HALF_H_

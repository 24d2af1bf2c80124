// fp32 to and from bf16 and fp16, one value at a time: the reference for convert.h, and what CUDA runs. Half
// values are uint16_t with the type's bits; half.inc has the rules.
//
//   uint16_t h = Bf16FromFloat(1.5f);   float f = FloatFromBf16(h);
//   uint16_t n = Bf16FromFloatDithered(x, Noise({seed, step}, element));      // stochastic rounding
//
// Thread-safe.
#ifndef SHERD_KERNELS_HALF_H_
#define SHERD_KERNELS_HALF_H_

#include <cstdint>
#include <cstring>

#include "kernels/block.h"

namespace sherd {
namespace kernels {
namespace half_internal {

SHERD_HOST_DEVICE uint32_t BitsOf(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
SHERD_HOST_DEVICE float FloatOf(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// The operations of half.inc on one value.
struct BitOps {
  using U = uint32_t;
  static SHERD_HOST_DEVICE U Set(uint32_t x) { return x; }
  static SHERD_HOST_DEVICE U Add(U a, U b) { return a + b; }
  static SHERD_HOST_DEVICE U Sub(U a, U b) { return a - b; }
  static SHERD_HOST_DEVICE U Mul(U a, U b) { return a * b; }
  static SHERD_HOST_DEVICE U And(U a, U b) { return a & b; }
  static SHERD_HOST_DEVICE U Or(U a, U b) { return a | b; }
  static SHERD_HOST_DEVICE U Xor(U a, U b) { return a ^ b; }
  template <int kBits>
  static SHERD_HOST_DEVICE U Shr(U a) {
    return a >> kBits;
  }
  template <int kBits>
  static SHERD_HOST_DEVICE U Shl(U a) {
    return a << kBits;
  }
  static SHERD_HOST_DEVICE U IfGreater(U a, U b, U yes, U no) { return a > b ? yes : no; }
  // The bits of the float with bits `a`, plus `c`.
  static SHERD_HOST_DEVICE U FloatAdd(U a, float c) { return BitsOf(FloatOf(a) + c); }
  // The float with bits `a` times `by`, plus the number `b` times `by_b`, cut to a whole number. Both
  // products are exact.
  static SHERD_HOST_DEVICE U FloatScaleAddTruncate(U a, float by, U b, float by_b) {
    return static_cast<U>(
        static_cast<int32_t>(FloatOf(a) * by + static_cast<float>(static_cast<int32_t>(b)) * by_b));
  }
};

#include "kernels/half.inc"

SHERD_HOST_DEVICE uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace half_internal

SHERD_HOST_DEVICE uint16_t Bf16FromFloat(float value) {
  using namespace half_internal;
  return static_cast<uint16_t>(Bf16Nearest<BitOps>(BitsOf(value)));
}
SHERD_HOST_DEVICE uint16_t Fp16FromFloat(float value) {
  using namespace half_internal;
  return static_cast<uint16_t>(Fp16Nearest<BitOps>(BitsOf(value)));
}
SHERD_HOST_DEVICE float FloatFromBf16(uint16_t half) {
  using namespace half_internal;
  return FloatOf(Bf16Widened<BitOps>(half));
}
SHERD_HOST_DEVICE float FloatFromFp16(uint16_t half) {
  using namespace half_internal;
  return FloatOf(Fp16Widened<BitOps>(half));
}

// What stochastic rounding draws its noise from: the same values give the same noise for ever, on any
// machine.
struct NoiseSeed {
  uint64_t seed = 0;
  uint64_t step = 0;
};

// Of a block of the whole layout (elements block * 256 ...).
SHERD_HOST_DEVICE uint64_t NoiseKey(const NoiseSeed& seed, int64_t block) {
  using half_internal::Mix;
  return Mix(Mix(Mix(seed.seed) + seed.step) + static_cast<uint64_t>(block));
}
// Of one element of the whole layout. REQUIRES: element >= 0.
SHERD_HOST_DEVICE uint32_t Noise(const NoiseSeed& seed, int64_t element) {
  using namespace half_internal;
  return NoiseOf<BitOps>(NoiseKey(seed, element / kBlockElements),
                         static_cast<uint32_t>(element % kBlockElements));
}

// Rounds up with a probability that is the part cut off: the mean over `random` is `value`.
SHERD_HOST_DEVICE uint16_t Bf16FromFloatDithered(float value, uint32_t random) {
  using namespace half_internal;
  return static_cast<uint16_t>(Bf16Dithered<BitOps>(BitsOf(value), random));
}
SHERD_HOST_DEVICE uint16_t Fp16FromFloatDithered(float value, uint32_t random) {
  using namespace half_internal;
  return static_cast<uint16_t>(Fp16Dithered<BitOps>(BitsOf(value), random));
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_HALF_H_

#include "kernels/convert.h"

#include <cstring>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "kernels/half_simd.inc"  // after it, and once per instruction set, too

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using half_simd::Bf16;
using half_simd::BitsTag;
using half_simd::FloatTag;
using half_simd::Fp16;
using half_simd::kLanes;
using half_simd::VectorBitOps;

// What is written comes from far: its lines are asked for early, which is also right when the caller comes
// one block at a time.
constexpr int64_t kPrefetchElements = 2 * kBlockElements;

VectorBitOps::U BitsAt(const float* from) { return hn::BitCast(BitsTag(), hn::LoadU(FloatTag(), from)); }

// Returns how many were done: all but less than a vector.
template <class Half>
int64_t Narrow(const float* HWY_RESTRICT from, int64_t n, uint16_t* HWY_RESTRICT to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hwy::Prefetch(to + i + kPrefetchElements);
    half_simd::StoreNearest<Half>(hn::LoadU(FloatTag(), from + i), to + i);
  }
  return i;
}

template <class Half>
int64_t Widen(const uint16_t* HWY_RESTRICT from, int64_t n, float* HWY_RESTRICT to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(half_simd::LoadHalf(reinterpret_cast<const Half*>(from + i)), FloatTag(), to + i);
  }
  return i;
}

template <class Half>
void Dither(const float* HWY_RESTRICT from, uint64_t key, uint16_t* HWY_RESTRICT to) {
  for (int i = 0; i < kBlockElements; i += kLanes) {
    hwy::Prefetch(to + i + kPrefetchElements);
    const VectorBitOps::U lane = hn::Iota(BitsTag(), static_cast<uint32_t>(i));
    const VectorBitOps::U noise = half_simd::NoiseOf<VectorBitOps>(key, lane);
    half_simd::StoreHalf(Half::Dithered(BitsAt(from + i), noise), to + i);
  }
}

int64_t NarrowBf16(const float* from, int64_t n, uint16_t* to) { return Narrow<Bf16>(from, n, to); }
int64_t NarrowFp16(const float* from, int64_t n, uint16_t* to) { return Narrow<Fp16>(from, n, to); }
int64_t WidenBf16(const uint16_t* from, int64_t n, float* to) { return Widen<Bf16>(from, n, to); }
int64_t WidenFp16(const uint16_t* from, int64_t n, float* to) { return Widen<Fp16>(from, n, to); }
void DitherBf16(const float* from, uint64_t key, uint16_t* to) { Dither<Bf16>(from, key, to); }
void DitherFp16(const float* from, uint64_t key, uint16_t* to) { Dither<Fp16>(from, key, to); }

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
namespace {
HWY_EXPORT(NarrowBf16);
HWY_EXPORT(NarrowFp16);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(WidenFp16);
HWY_EXPORT(DitherBf16);
HWY_EXPORT(DitherFp16);
}  // namespace

void FromFloat(const float* from, int64_t n, DType dtype, void* to) {
  if (dtype == DType::kFloat32) {
    if (n > 0) std::memcpy(to, from, n * 4);
    return;
  }
  auto* const halves = static_cast<uint16_t*>(to);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = HWY_DYNAMIC_DISPATCH(NarrowBf16)(from, n, halves); i < n; ++i) {
      halves[i] = Bf16FromFloat(from[i]);
    }
  } else {
    for (int64_t i = HWY_DYNAMIC_DISPATCH(NarrowFp16)(from, n, halves); i < n; ++i) {
      halves[i] = Fp16FromFloat(from[i]);
    }
  }
}

void ToFloat(DType dtype, const void* from, int64_t n, float* to) {
  if (dtype == DType::kFloat32) {
    if (n > 0) std::memcpy(to, from, n * 4);
    return;
  }
  const auto* const halves = static_cast<const uint16_t*>(from);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = HWY_DYNAMIC_DISPATCH(WidenBf16)(halves, n, to); i < n; ++i)
      to[i] = FloatFromBf16(halves[i]);
  } else {
    for (int64_t i = HWY_DYNAMIC_DISPATCH(WidenFp16)(halves, n, to); i < n; ++i)
      to[i] = FloatFromFp16(halves[i]);
  }
}

void Convert(DType from_type, const void* from, DType to_type, void* to, int64_t n) {
  if (from_type == to_type) {
    if (n > 0) std::memcpy(to, from, n * SizeOf(from_type));
  } else if (from_type == DType::kFloat32) {
    FromFloat(static_cast<const float*>(from), n, to_type, to);
  } else if (to_type == DType::kFloat32) {
    ToFloat(from_type, from, n, static_cast<float*>(to));
  } else {
    float wide[kBlockElements];
    for (int64_t i = 0; i < n; i += kBlockElements) {
      const int64_t some = n - i < kBlockElements ? n - i : kBlockElements;
      ToFloat(from_type, static_cast<const uint16_t*>(from) + i, some, wide);
      FromFloat(wide, some, to_type, static_cast<uint16_t*>(to) + i);
    }
  }
}

void RoundBlocks(const float* from, int64_t first_block, int64_t blocks, DType dtype, uint16_t* to,
                 const NoiseSeed& seed) {
  Require(dtype == DType::kBFloat16 || dtype == DType::kFloat16, "RoundBlocks: dtype must have 16 bits");
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t key = NoiseKey(seed, first_block + b);
    const float* const at = from + b * kBlockElements;
    if (dtype == DType::kBFloat16) {
      HWY_DYNAMIC_DISPATCH(DitherBf16)(at, key, to + b * kBlockElements);
    } else {
      HWY_DYNAMIC_DISPATCH(DitherFp16)(at, key, to + b * kBlockElements);
    }
  }
}

}  // namespace kernels
}  // namespace sherd
#endif  // HWY_ONCE

// Internal to kernels/: the operations of half.inc on vectors, and loads and stores of 16-bit lanes. Included
// after hwy/highway.h, once per instruction set, outside of any namespace.
#if defined(SHERD_KERNELS_HALF_SIMD_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_HALF_SIMD_H_
#undef SHERD_KERNELS_HALF_SIMD_H_
#else
#define SHERD_KERNELS_HALF_SIMD_H_
#endif

#include "kernels/block.h"

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace half_simd {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kNormLanes>;
using BitsTag = hn::RebindToUnsigned<FloatTag>;
using IntTag = hn::RebindToSigned<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(FloatTag()));

struct VectorBitOps {
  using U = hn::Vec<BitsTag>;
  static HWY_INLINE U Set(uint32_t x) { return hn::Set(BitsTag(), x); }
  static HWY_INLINE U Add(U a, U b) { return hn::Add(a, b); }
  static HWY_INLINE U Sub(U a, U b) { return hn::Sub(a, b); }
  static HWY_INLINE U Mul(U a, U b) { return hn::Mul(a, b); }
  static HWY_INLINE U And(U a, U b) { return hn::And(a, b); }
  static HWY_INLINE U Or(U a, U b) { return hn::Or(a, b); }
  static HWY_INLINE U Xor(U a, U b) { return hn::Xor(a, b); }
  template <int kBits>
  static HWY_INLINE U Shr(U a) {
    return hn::ShiftRight<kBits>(a);
  }
  template <int kBits>
  static HWY_INLINE U Shl(U a) {
    return hn::ShiftLeft<kBits>(a);
  }
  // What half.inc compares is below 2^31: signed comparison is the cheaper one.
  static HWY_INLINE U IfGreater(U a, U b, U yes, U no) {
    const auto greater = hn::Gt(hn::BitCast(IntTag(), a), hn::BitCast(IntTag(), b));
    return hn::IfThenElse(hn::RebindMask(BitsTag(), greater), yes, no);
  }
  static HWY_INLINE U FloatAdd(U a, float c) {
    return hn::BitCast(BitsTag(), hn::Add(hn::BitCast(FloatTag(), a), hn::Set(FloatTag(), c)));
  }
  static HWY_INLINE U FloatScaleAddTruncate(U a, float by, U b, float by_b) {
    const FloatTag d;
    const auto x = hn::Mul(hn::BitCast(d, a), hn::Set(d, by));
    const auto y = hn::Mul(hn::ConvertTo(d, hn::BitCast(IntTag(), b)), hn::Set(d, by_b));
    return hn::BitCast(BitsTag(), hn::ConvertTo(IntTag(), hn::Add(x, y)));
  }
};

#include "kernels/half.inc"

// 16-bit element types, told apart by type.
struct Bf16 {
  uint16_t bits;
  static HWY_INLINE VectorBitOps::U Widened(VectorBitOps::U half) { return Bf16Widened<VectorBitOps>(half); }
  static HWY_INLINE VectorBitOps::U Nearest(VectorBitOps::U bits) { return Bf16Nearest<VectorBitOps>(bits); }
  static HWY_INLINE VectorBitOps::U Dithered(VectorBitOps::U bits, VectorBitOps::U random) {
    return Bf16Dithered<VectorBitOps>(bits, random);
  }
};
struct Fp16 {
  uint16_t bits;
  static HWY_INLINE VectorBitOps::U Widened(VectorBitOps::U half) { return Fp16Widened<VectorBitOps>(half); }
  static HWY_INLINE VectorBitOps::U Nearest(VectorBitOps::U bits) { return Fp16Nearest<VectorBitOps>(bits); }
  static HWY_INLINE VectorBitOps::U Dithered(VectorBitOps::U bits, VectorBitOps::U random) {
    return Fp16Dithered<VectorBitOps>(bits, random);
  }
};

// kLanes values as fp32; any alignment.
template <class Half>
HWY_INLINE hn::Vec<FloatTag> LoadHalf(const Half* from) {
  const auto halves = hn::LoadU(HalfTag(), &from->bits);
  return hn::BitCast(FloatTag(), Half::Widened(hn::PromoteTo(BitsTag(), halves)));
}

// Stores kLanes 16-bit values, each in the low half of a lane of `bits`; any alignment.
HWY_INLINE void StoreHalf(VectorBitOps::U bits, uint16_t* to) {
  hn::StoreU(hn::DemoteTo(HalfTag(), hn::BitCast(IntTag(), bits)), HalfTag(), to);
}

}  // namespace half_simd
}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

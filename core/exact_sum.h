// Sums doubles exactly, so that the result does not depend on who adds what first: the gradient norm is the
// same whatever the number of servers, the packing of units and the order of arrival.
//
//   ExactSum sum;
//   sum.Add(1e300);  sum.Add(1.0);  sum.Add(-1e300);
//   sum.Value();                                        // 1.0
//
// A fixed-point number over the whole range of double: bit 0 is 2^-1074, in limbs of 32 bits, each kept in 64
// so that hundreds of millions of carries may wait. Plain bytes of fixed size, all zero when empty: it may
// stand in shared memory and be copied. Every pattern of bytes is some sum: foreign bytes give a wrong sum,
// never undefined behaviour. Thread-compatible.
#ifndef SHERD_CORE_EXACT_SUM_H_
#define SHERD_CORE_EXACT_SUM_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sherd {

class ExactSum {
 public:
  // Adds `x`, any double. A non-finite one is only remembered (see Value). Exact for 2^70 additions of any
  // size.
  void Add(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t exponent = static_cast<uint32_t>(bits >> 52) & 0x7FF;
    if (exponent == 0x7FF) return AddNonFinite(bits);
    // A subnormal has the exponent of the least normal and no hidden bit.
    const uint64_t mantissa = (bits & kFractionMask) | (exponent != 0 ? kHiddenBit : 0);
    const uint32_t position = exponent != 0 ? exponent - 1 : 0;  // of the mantissa's lowest bit
    const uint32_t shift = position % 32;
    const uint64_t low = mantissa << shift;
    const uint64_t high = (mantissa >> 32) >> (32 - shift);  // bits 64 and up of mantissa * 2^shift
    // Two's complement throughout: -v is (v ^ ~0) + 1, without a branch on the sign.
    const uint64_t flip = uint64_t{0} - (bits >> 63);
    uint64_t* limb = limbs_ + position / 32;
    limb[0] += ((low & 0xFFFFFFFF) ^ flip) - flip;
    limb[1] += ((low >> 32) ^ flip) - flip;
    limb[2] += (high ^ flip) - flip;
    if (++pending_ >= kMaxPending) Normalize();
  }

  // Adds all that `other` holds. `other` may be *this.
  void Merge(const ExactSum& other);

  // The sum rounded once, to nearest, ties to even; +0 for an exact zero; an infinity if the sum is past the
  // range of double. With non-finite inputs: NaN if there was a NaN or infinities of both signs, else the
  // infinity.
  double Value() const;

  // Whether every value added so far (here or in what was merged) was finite.
  bool finite() const { return non_finite_ == 0; }

  // Brings the limbs into their one canonical form: sums of equal value (and equal kinds of non-finite
  // inputs) are then equal bytes. Changes no value.
  void Normalize();

  // Equal as numbers, to the last bit, whether normalised or not.
  friend bool operator==(const ExactSum& a, const ExactSum& b);
  friend bool operator!=(const ExactSum& a, const ExactSum& b) { return !(a == b); }

 private:
  // The highest mantissa starts at bit 2045: limbs 63 to 65. Limb 66 takes carries, and as it is 64 bits wide
  // the sum of 2^76 largest doubles.
  static constexpr int kLimbs = 67;
  static constexpr uint64_t kFractionMask = (uint64_t{1} << 52) - 1;
  static constexpr uint64_t kHiddenBit = uint64_t{1} << 52;
  // Additions, each of less than 2^32 a limb, before carries must be taken up. Two sums within this bound
  // merge within a signed 64-bit limb.
  static constexpr uint32_t kMaxPending = uint32_t{1} << 29;
  static constexpr uint32_t kSawPositiveInfinity = 1;
  static constexpr uint32_t kSawNegativeInfinity = 2;
  static constexpr uint32_t kSawNaN = 4;

  void AddNonFinite(uint64_t bits);

  // Two's complement, so that wrapping is defined. Normalised: all but the last are below 2^32; the last has
  // the sign of the sum.
  uint64_t limbs_[kLimbs] = {};
  uint32_t pending_ = 0;     // additions since Normalize: each limb is below (pending_ + 1) * 2^32 in size
  uint32_t non_finite_ = 0;  // which kinds came in
};

static_assert(std::is_trivially_copyable<ExactSum>::value && std::is_standard_layout<ExactSum>::value,
              "stands in shared memory");
static_assert(std::has_unique_object_representations<ExactSum>::value, "canonical sums compare as bytes");
static_assert(sizeof(ExactSum) == 544, "part of the shared-memory format");

}  // namespace sherd

#endif  // SHERD_CORE_EXACT_SUM_H_

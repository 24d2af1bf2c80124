#include "core/exact_sum.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/numeric/int128.h"

namespace sherd {
namespace {

// mantissa * 2^(low_bit - 1074), rounded to nearest even, of a number given by its base-2^32 digits, lowest
// first.
double Round(const uint64_t* digits, int count) {
  int top = count - 1;
  while (top >= 0 && digits[top] == 0) --top;
  if (top < 0) return 0.0;

  // The three highest digits hold at least 65 bits: the mantissa and its rounding bit. Below digit 0 is zero.
  const auto digit = [&](int i) { return absl::uint128(i >= 0 ? digits[i] : 0); };
  const absl::uint128 window = (digit(top) << 64) | (digit(top - 1) << 32) | digit(top - 2);
  const int base = 32 * (top - 2);  // position of the window's bit 0; may be negative
  int top_bit = 32 * top;
  while ((digits[top] >> (top_bit - 32 * top)) > 1) ++top_bit;

  const int low_bit = std::max(top_bit - 52, 0);  // nothing is finer than the least subnormal
  const int cut = low_bit - base;                 // bits of the window below the mantissa; at least 12
  uint64_t mantissa = absl::Uint128Low64(window >> cut);
  const absl::uint128 rest = window & ((absl::uint128(1) << cut) - 1);
  const absl::uint128 half = absl::uint128(1) << (cut - 1);
  const bool below = std::any_of(digits, digits + std::max(top - 2, 0), [](uint64_t d) { return d != 0; });
  const bool more_than_half = rest > half || (rest == half && below);
  const bool tie = rest == half && !below;
  if (more_than_half || (tie && (mantissa & 1) != 0)) ++mantissa;
  return std::ldexp(static_cast<double>(mantissa), low_bit - 1074);
}

}  // namespace

void ExactSum::AddNonFinite(uint64_t bits) {
  if ((bits & kFractionMask) != 0) {
    non_finite_ |= kSawNaN;
  } else {
    non_finite_ |= (bits >> 63) != 0 ? kSawNegativeInfinity : kSawPositiveInfinity;
  }
}

void ExactSum::Normalize() {
  uint64_t carry = 0;
  for (int i = 0; i < kLimbs - 1; ++i) {
    const uint64_t limb = limbs_[i] + carry;
    limbs_[i] = limb & 0xFFFFFFFF;
    carry =
        static_cast<uint64_t>(static_cast<int64_t>(limb) >> 32);  // rounds down: borrows are carries of -1
  }
  limbs_[kLimbs - 1] += carry;
  pending_ = 0;
}

void ExactSum::Merge(const ExactSum& other) {
  for (int i = 0; i < kLimbs; ++i) limbs_[i] += other.limbs_[i];
  non_finite_ |= other.non_finite_;
  const uint64_t pending = uint64_t{pending_} + other.pending_ + 1;
  if (pending >= kMaxPending) {
    Normalize();
  } else {
    pending_ = static_cast<uint32_t>(pending);
  }
}

double ExactSum::Value() const {
  if ((non_finite_ & kSawNaN) != 0 || non_finite_ == (kSawPositiveInfinity | kSawNegativeInfinity)) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (non_finite_ != 0) {
    const double infinity = std::numeric_limits<double>::infinity();
    return non_finite_ == kSawPositiveInfinity ? infinity : -infinity;
  }
  ExactSum sum = *this;
  sum.Normalize();
  const bool negative = (sum.limbs_[kLimbs - 1] >> 63) != 0;
  if (negative) {
    for (uint64_t& limb : sum.limbs_) limb = uint64_t{0} - limb;
    sum.Normalize();
  }
  // Past 32 bits the highest limb is far beyond the largest double, whatever it holds.
  if (sum.limbs_[kLimbs - 1] > 0xFFFFFFFF) sum.limbs_[kLimbs - 1] = 0xFFFFFFFF;
  const double magnitude = Round(sum.limbs_, kLimbs);
  return negative ? -magnitude : magnitude;
}

bool operator==(const ExactSum& a, const ExactSum& b) {
  ExactSum x = a;
  ExactSum y = b;
  x.Normalize();
  y.Normalize();
  return std::memcmp(&x, &y, sizeof x) == 0;
}

}  // namespace sherd

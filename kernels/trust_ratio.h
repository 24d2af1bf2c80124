// LAMB's trust ratio of one tensor (lamb.inc), from sums of squares over its blocks.
#ifndef SHERD_KERNELS_TRUST_RATIO_H_
#define SHERD_KERNELS_TRUST_RATIO_H_

#include <algorithm>
#include <cmath>

namespace sherd {
namespace kernels {

// |values| / |direction|, at least min_coeff and (if that is above 0) at most max_coeff, as DeepSpeed bounds
// it; 1 if one of the norms is 0 or not finite. Arguments are sums of squares. Pure; the same on every
// machine.
inline double TrustRatio(double values, double direction, double min_coeff, double max_coeff) {
  if (!(values > 0 && direction > 0 && std::isfinite(values) && std::isfinite(direction))) return 1;
  const double ratio = std::max(min_coeff, std::sqrt(values) / std::sqrt(direction));
  return max_coeff > 0 ? std::min(max_coeff, ratio) : ratio;
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_TRUST_RATIO_H_

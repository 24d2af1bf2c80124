#include "kernels/scalars.h"

#include <cmath>
#include <cstdio>

namespace sherd {
namespace kernels {

double BiasCorrection(double beta, uint64_t step) {
  double power = 1;
  double square = beta;
  for (uint64_t n = step; n != 0; n >>= 1) {
    if ((n & 1) != 0) power *= square;
    square *= square;
  }
  return 1 - power;
}

std::string CheckRange(const char* field, double value, double low, double high) {
  if (std::isfinite(value) && value >= low && value < high) return "";
  char text[160];
  if (std::isinf(high)) {
    std::snprintf(text, sizeof(text), "%s is %g: it must be finite and at least %g", field, value, low);
  } else {
    std::snprintf(text, sizeof(text), "%s is %g: it must be at least %g and below %g", field, value, low,
                  high);
  }
  return text;
}

std::string CheckEps(double eps) {
  const std::string problem = CheckRange("eps", eps, 0, HUGE_VAL);
  if (!problem.empty() || static_cast<float>(eps) > 0) return problem;
  char text[160];
  std::snprintf(text, sizeof(text), "eps is %g: it must be above 0 in fp32, for example 1e-8", eps);
  return text;
}

}  // namespace kernels
}  // namespace sherd

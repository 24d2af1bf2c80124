#include "kernels/stream_copy.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stream_copy.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void Copy(float* to, const float* from, int64_t n) {
  using Tag = hn::CappedTag<float, 16>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
  constexpr int64_t kAhead = 512;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    hwy::Prefetch(from + i + kAhead);
    for (int j = 0; j < 16; j += kLanes) hn::Stream(hn::LoadU(Tag(), from + i + j), Tag(), to + i + j);
  }
  for (; i < n; ++i) to[i] = from[i];
  hwy::FlushStream();
}

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
HWY_EXPORT(Copy);

void StreamCopy(float* to, const float* from, int64_t n) { HWY_DYNAMIC_DISPATCH(Copy)(to, from, n); }

}  // namespace kernels
}  // namespace sherd
#endif

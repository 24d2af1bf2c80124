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

void Copy(uint8_t* to, const uint8_t* from, int64_t n) {
  using Tag = hn::CappedTag<uint8_t, 64>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
  constexpr int64_t kAhead = 2048;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    hwy::Prefetch(from + i + kAhead);
    for (int j = 0; j < 64; j += kLanes) hn::Stream(hn::LoadU(Tag(), from + i + j), Tag(), to + i + j);
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

void StreamCopy(void* to, const void* from, int64_t bytes) {
  HWY_DYNAMIC_DISPATCH(Copy)(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes);
}

}  // namespace kernels
}  // namespace sherd
#endif

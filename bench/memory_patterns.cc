#include "bench/memory_patterns.h"

#include <atomic>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/memory_patterns.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int kLine = 16;
using Tag = hn::CappedTag<float, kLine>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));

// Where results of reads go, so that they are not optimised away.
std::atomic<float> sink;

template <int kArrays>
void Read(float* const arrays[kPatternArrays], int64_t begin, int64_t end) {
  const Tag d;
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  for (int64_t i = begin; i < end; i += kLanes) {
    a = hn::Add(a, hn::Load(d, arrays[0] + i));
    if (kArrays > 1) b = hn::Add(b, hn::Load(d, arrays[1] + i));
    if (kArrays > 2) c = hn::Add(c, hn::Load(d, arrays[2] + i));
    if (kArrays > 3) e = hn::Add(e, hn::Load(d, arrays[3] + i));
  }
  sink = hn::GetLane(hn::Add(hn::Add(a, b), hn::Add(c, e)));
}

void Copy(float* const arrays[kPatternArrays], int64_t begin, int64_t end) {
  std::memcpy(arrays[1] + begin, arrays[0] + begin, (end - begin) * sizeof(float));
}

void CopyStream(float* const arrays[kPatternArrays], int64_t begin, int64_t end) {
  const Tag d;
  for (int64_t i = begin; i < end; i += kLanes) hn::Stream(hn::Load(d, arrays[0] + i), d, arrays[1] + i);
  hwy::FlushStream();
}

template <int64_t kPrefetch>
void TriadStream(float* const arrays[kPatternArrays], int64_t begin, int64_t end) {
  const Tag d;
  const auto half = hn::Set(d, 0.5f);
  for (int64_t at = begin; at < end; at += kLine) {
    for (int k = 0; k < 2 && kPrefetch != 0; ++k) hwy::Prefetch(arrays[k] + at + kPrefetch);
    for (int64_t i = at; i < at + kLine; i += kLanes) {
      const auto sum = hn::Add(hn::Load(d, arrays[0] + i), hn::Load(d, arrays[1] + i));
      hn::Stream(hn::Mul(sum, half), d, arrays[2] + i);
    }
  }
  hwy::FlushStream();
}

// In place over kArrays, with up to two more read; prefetched kPrefetch elements ahead unless 0.
template <int kArrays, int kExtra, int64_t kPrefetch>
void InPlace(float* const arrays[kPatternArrays], int64_t begin, int64_t end) {
  const Tag d;
  const auto one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
  for (int64_t at = begin; at < end; at += kLine) {
    if (kPrefetch != 0) {
      for (int k = 0; k < kArrays + kExtra; ++k)
        hwy::Prefetch(arrays[kPatternArrays - 1 - k] + at + kPrefetch);
    }
    for (int64_t i = at; i < at + kLine; i += kLanes) {
      auto x = kExtra > 0 ? hn::Load(d, arrays[kPatternArrays - 1] + i) : one;
      if (kExtra > 1) x = hn::Mul(hn::Add(x, hn::Load(d, arrays[kPatternArrays - 2] + i)), half);
      for (int k = 0; k < kArrays; ++k) {
        float* to = arrays[kPatternArrays - 1 - kExtra - k] + i;
        hn::Store(hn::Mul(hn::Add(hn::Load(d, to), x), half), d, to);
      }
    }
  }
}

const std::vector<MemoryPattern>& Patterns() {
  static const std::vector<MemoryPattern>* const patterns = new std::vector<MemoryPattern>{
      {"read 1", "read", 4, &Read<1>},
      {"read 4", "read", 16, &Read<4>},
      {"memcpy", "copy", 8, &Copy},
      {"copy, streamed", "copy", 8, &CopyStream},
      {"triad, streamed", "triad", 12, &TriadStream<0>},
      {"triad, streamed, prefetch", "triad", 12, &TriadStream<512>},
      {"in place 1", "in place", 8, &InPlace<1, 0, 0>},
      {"in place 1, prefetch", "in place", 8, &InPlace<1, 0, 512>},
      {"in place 1 + read 2, prefetch", "accumulate", 16, &InPlace<1, 2, 512>},
      {"in place 3 + read 1", "update", 28, &InPlace<3, 1, 0>},
      {"in place 3 + read 1, prefetch", "update", 28, &InPlace<3, 1, 512>},
  };
  return *patterns;
}

}  // namespace HWY_NAMESPACE
}  // namespace bench
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace bench {
HWY_EXPORT(Patterns);
const std::vector<MemoryPattern>& MemoryPatterns() { return HWY_DYNAMIC_DISPATCH(Patterns)(); }
}  // namespace bench
}  // namespace sherd
#endif  // HWY_ONCE

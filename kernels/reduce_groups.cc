#include "kernels/reduce_groups.h"

#include <type_traits>

#include "kernels/lane_tree.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reduce_groups.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

// After it, and once per instruction set, too.
#include "kernels/half_simd.inc"
#include "kernels/squares_simd.inc"

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using half_simd::Bf16;
using half_simd::Fp16;
using squares_simd::DoubleVec;
using squares_simd::FloatTag;
using squares_simd::FloatVec;
using squares_simd::kDoubleVecs;
using squares_simd::kFloatLanes;
using squares_simd::kFloatVecs;

// A line: 64 bytes, one element for each norm lane.
constexpr int kLine = kNormLanes;
// How far ahead of the loads each source is prefetched: the hardware's prefetcher stops at each page.
constexpr int64_t kPrefetchElements = 512;

// What an element of each type does, as vectors.
struct F32 {
  float value;
  static HWY_INLINE FloatVec Load(const F32* from) { return hn::Load(FloatTag(), &from->value); }
  static HWY_INLINE FloatVec Rounded(FloatVec v) { return v; }
  static HWY_INLINE void Store(FloatVec v, F32* to) { hn::Store(v, FloatTag(), &to->value); }
};
template <class Half>
struct H16 {
  Half value;
  static HWY_INLINE FloatVec Load(const H16* from) { return half_simd::LoadForSum(&from->value); }
  static HWY_INLINE FloatVec Rounded(FloatVec v) { return half_simd::RoundNearest<Half>(v); }
  static HWY_INLINE void Store(FloatVec v, H16* to) { half_simd::StoreNearest<Half>(v, &to->value.bits); }
};

// The partial sum of a line of sources[first...], of which sources[first] is live.
template <class T>
HWY_INLINE void PartialLine(const Source* sources, int first, int n, int64_t at, FloatVec (&p)[kFloatVecs]) {
  for (int k = first; k < n; ++k) {
    if (sources[k].data == nullptr) continue;
    const T* from = static_cast<const T*>(sources[k].data) + at;
    hwy::Prefetch(from + kPrefetchElements);
    const FloatVec scale = hn::Set(FloatTag(), sources[k].scale);
    for (int j = 0; j < kFloatVecs; ++j) {
      const FloatVec x = hn::Mul(T::Load(from + j * kFloatLanes), scale);
      p[j] = k == first ? x : hn::Add(p[j], x);
    }
  }
}

// Adds a group's block at element `at` to `sum`; the first group starts it.
template <class T, class Wire>
void AddGroup(const Source* sources, int first, int n, int64_t at, bool starts, float* HWY_RESTRICT sum) {
  for (int i = 0; i < kBlockElements; i += kLine) {
    FloatVec p[kFloatVecs];
    PartialLine<T>(sources, first, n, at + i, p);
    for (int j = 0; j < kFloatVecs; ++j) {
      float* const to = sum + i + j * kFloatLanes;
      const FloatVec rounded = Wire::Rounded(p[j]);
      hn::Store(starts ? rounded : hn::Add(hn::Load(FloatTag(), to), rounded), FloatTag(), to);
    }
  }
}

// Stores a block's sum and returns its sum of squares.
template <bool kAccumulate, bool kStream>
HWY_INLINE double Finish(const float* HWY_RESTRICT sum, float* HWY_RESTRICT out) {
  const FloatTag df;
  DoubleVec acc[kDoubleVecs];
  squares_simd::Clear(acc);
  for (int i = 0; i < kBlockElements; i += kLine) {
    for (int j = 0; j < kFloatVecs; ++j) {
      const int at = i + j * kFloatLanes;
      FloatVec t = hn::Load(df, sum + at);
      if (kAccumulate) t = hn::Add(hn::Load(df, out + at), t);
      if (kStream) {
        hn::Stream(t, df, out + at);
      } else {
        hn::Store(t, df, out + at);
      }
      squares_simd::AddSquares(t, j, acc);
    }
  }
  return squares_simd::Sum(acc);
}

using AddFn = void (*)(const Source*, int, int, int64_t, bool, float*);
using PartialFn = void (*)(const Source*, int, int, int64_t, void*);

template <class T, class Wire>
void StorePartial(const Source* sources, int first, int n, int64_t blocks, void* out) {
  Wire* const to = static_cast<Wire*>(out);
  for (int64_t at = 0; at < blocks * kBlockElements; at += kLine) {
    FloatVec p[kFloatVecs];
    PartialLine<T>(sources, first, n, at, p);
    for (int j = 0; j < kFloatVecs; ++j) Wire::Store(p[j], to + at + j * kFloatLanes);
  }
}

template <class Wire>
AddFn AdderOf(DType dtype) {
  return dtype == DType::kFloat32    ? &AddGroup<F32, Wire>
         : dtype == DType::kBFloat16 ? &AddGroup<H16<Bf16>, Wire>
                                     : &AddGroup<H16<Fp16>, Wire>;
}
template <class Wire>
PartialFn StorerOf(DType dtype) {
  return dtype == DType::kFloat32    ? &StorePartial<F32, Wire>
         : dtype == DType::kBFloat16 ? &StorePartial<H16<Bf16>, Wire>
                                     : &StorePartial<H16<Fp16>, Wire>;
}

HWY_INLINE int FirstLive(const Source* sources, int n) {
  int first = 0;
  while (first < n && sources[first].data == nullptr) ++first;
  return first;
}

template <bool kAccumulate, bool kStream>
void Groups(const SourceGroup* groups, int n, DType wire, float* out, int64_t blocks, double* block_sumsq) {
  HWY_ALIGN float sum[kBlockElements];
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = b * kBlockElements;
    bool starts = true;
    for (int g = 0; g < n; ++g) {
      const Source* const sources = groups[g].sources;
      const int first = FirstLive(sources, groups[g].n);
      if (first == groups[g].n) continue;
      const DType dtype = sources[first].dtype;
      const AddFn add = wire == DType::kFloat32    ? AdderOf<F32>(dtype)
                        : wire == DType::kBFloat16 ? AdderOf<H16<Bf16>>(dtype)
                                                   : AdderOf<H16<Fp16>>(dtype);
      add(sources, first, groups[g].n, at, starts, sum);
      starts = false;
    }
    if (starts) {
      for (float& t : sum) t = 0;
    }
    block_sumsq[b] = Finish<kAccumulate, kStream>(sum, out + at);
  }
  if (kStream) hwy::FlushStream();
}

void ReduceGroups(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream) {
  if (accumulate) return Groups<true, false>(groups, n, wire, out, blocks, block_sumsq);
  if (stream) return Groups<false, true>(groups, n, wire, out, blocks, block_sumsq);
  Groups<false, false>(groups, n, wire, out, blocks, block_sumsq);
}

void ReducePartial(const Source* sources, int n, DType wire, void* out, int64_t blocks) {
  const int first = FirstLive(sources, n);
  const DType dtype = sources[first].dtype;
  const PartialFn store = wire == DType::kFloat32    ? StorerOf<F32>(dtype)
                          : wire == DType::kBFloat16 ? StorerOf<H16<Bf16>>(dtype)
                                                     : StorerOf<H16<Fp16>>(dtype);
  store(sources, first, n, blocks, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
namespace {

HWY_EXPORT(ReduceGroups);
HWY_EXPORT(ReducePartial);

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kBlockAlignment == 0; }

// Whether a source is there.
bool CheckGroup(const Source* sources, int n) {
  Require(n >= 0, "ReduceGroups: counts must not be negative");
  const Source* first = nullptr;
  for (int k = 0; k < n; ++k) {
    Require(Aligned(sources[k].data), "ReduceGroups: sources must be aligned to 64 bytes");
    if (sources[k].data == nullptr) continue;
    if (first == nullptr) first = &sources[k];
    Require(sources[k].dtype == first->dtype, "ReduceGroups: sources of a group must be of one dtype");
  }
  return first != nullptr;
}

}  // namespace

void ReduceGroups(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream) {
  Require(!(accumulate && stream), "ReduceGroups: accumulate reads out, stream writes it past the caches");
  Require(n >= 0 && blocks >= 0, "ReduceGroups: counts must not be negative");
  Require(Aligned(out), "ReduceGroups: out must be aligned to 64 bytes");
  for (int g = 0; g < n; ++g) CheckGroup(groups[g].sources, groups[g].n);
  HWY_DYNAMIC_DISPATCH(ReduceGroups)(groups, n, wire, accumulate, out, blocks, block_sumsq, stream);
}

void ReducePartial(const Source* sources, int n, DType wire, void* out, int64_t blocks) {
  Require(blocks >= 0, "ReducePartial: counts must not be negative");
  Require(Aligned(out), "ReducePartial: out must be aligned to 64 bytes");
  Require(CheckGroup(sources, n), "ReducePartial: no source is there");
  HWY_DYNAMIC_DISPATCH(ReducePartial)(sources, n, wire, out, blocks);
}

}  // namespace kernels
}  // namespace sherd
#endif  // HWY_ONCE

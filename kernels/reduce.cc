#include "kernels/reduce.h"

#include <type_traits>

#include "kernels/lane_tree.h"
#include "kernels/prefetch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reduce.cc"
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

using squares_simd::AddSquares;
using squares_simd::DoubleVec;
using squares_simd::FloatTag;
using squares_simd::FloatVec;
using squares_simd::kDoubleVecs;
using squares_simd::kFloatLanes;
using squares_simd::kFloatVecs;

// Work goes line by line: 64 bytes, one element for each norm lane.
constexpr int kLine = kNormLanes;
// How far ahead of the loads each source is prefetched, where that pays.
constexpr int64_t kPrefetchElements = 512;

// Loads as fp32 whatever the source holds.
HWY_INLINE FloatVec LoadSource(const float* from) { return hn::Load(FloatTag(), from); }
template <class Half>
HWY_INLINE FloatVec LoadSource(const Half* from) {
  return half_simd::LoadForSum(from);
}

template <bool kScaled, typename T>
HWY_INLINE FloatVec Term(const T* from, float scale) {
  const FloatVec v = LoadSource(from);
  return kScaled ? hn::Mul(v, hn::Set(FloatTag(), scale)) : v;
}

// Adds sources[first...] to t, for the line at element `at`. Skips null ones.
template <typename T, bool kScaled>
HWY_INLINE void AddSources(const Source* sources, int first, int n, int64_t at, int64_t ahead,
                           FloatVec (&t)[kFloatVecs]) {
  for (int k = first; k < n; ++k) {
    if (sources[k].data == nullptr) continue;
    const T* from = static_cast<const T*>(sources[k].data) + at;
    hwy::Prefetch(from + ahead);
    const float scale = sources[k].scale;
    for (int j = 0; j < kFloatVecs; ++j) t[j] = hn::Add(t[j], Term<kScaled>(from + j * kFloatLanes, scale));
  }
}

enum class Store { kPlain, kAccumulate, kStream };

// kPair: exactly two sources, both live, the common case of two ranks on a host. Otherwise any number, of
// which sources[0] is live if n > 0.
template <typename T, bool kScaled, Store kStore, bool kPair>
void Reduce(const Source* sources, int n, float* out, int64_t blocks, double* block_sumsq) {
  const FloatTag df;
  // Copies: stores to out could otherwise alias the scales.
  const T* const first = n > 0 ? static_cast<const T*>(sources[0].data) : nullptr;
  const float first_scale = n > 0 ? sources[0].scale : 1.0f;
  const T* const second = kPair ? static_cast<const T*>(sources[1].data) : nullptr;
  const float second_scale = kPair ? sources[1].scale : 1.0f;
  const int64_t ahead = PrefetchDistance(kPrefetchElements);
  for (int64_t b = 0; b < blocks; ++b) {
    DoubleVec acc[kDoubleVecs];
    squares_simd::Clear(acc);
    for (int64_t at = b * kBlockElements; at < (b + 1) * kBlockElements; at += kLine) {
      FloatVec t[kFloatVecs];
      if (first != nullptr) hwy::Prefetch(first + at + ahead);
      if (kPair) hwy::Prefetch(second + at + ahead);
      if (kStore == Store::kAccumulate) hwy::Prefetch(out + at + ahead);
      for (int j = 0; j < kFloatVecs; ++j) {
        const int64_t i = at + j * kFloatLanes;
        t[j] = first != nullptr ? Term<kScaled>(first + i, first_scale) : hn::Zero(df);
        if (kPair) t[j] = hn::Add(t[j], Term<kScaled>(second + i, second_scale));
      }
      if (!kPair) AddSources<T, kScaled>(sources, 1, n, at, ahead, t);
      for (int j = 0; j < kFloatVecs; ++j) {
        float* to = out + at + j * kFloatLanes;
        if (kStore == Store::kAccumulate) t[j] = hn::Add(hn::Load(df, to), t[j]);
        if (kStore == Store::kStream) {
          hn::Stream(t[j], df, to);
        } else {
          hn::Store(t[j], df, to);
        }
        AddSquares(t[j], j, acc);
      }
    }
    block_sumsq[b] = squares_simd::Sum(acc);
  }
  if (kStore == Store::kStream) hwy::FlushStream();
}

template <typename T, bool kScaled, Store kStore>
void ReduceCount(const Source* sources, int n, float* out, int64_t blocks, double* block_sumsq) {
  if (n == 2 && sources[1].data != nullptr) {
    Reduce<T, kScaled, kStore, true>(sources, n, out, blocks, block_sumsq);
  } else {
    Reduce<T, kScaled, kStore, false>(sources, n, out, blocks, block_sumsq);
  }
}

template <typename T, bool kScaled>
void ReduceStore(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                 double* block_sumsq, bool stream) {
  if (accumulate) return ReduceCount<T, kScaled, Store::kAccumulate>(sources, n, out, blocks, block_sumsq);
  if (stream) return ReduceCount<T, kScaled, Store::kStream>(sources, n, out, blocks, block_sumsq);
  ReduceCount<T, kScaled, Store::kPlain>(sources, n, out, blocks, block_sumsq);
}

template <typename T>
void ReduceScaled(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream) {
  bool scaled = false;
  for (int k = 0; k < n; ++k) scaled |= sources[k].data != nullptr && sources[k].scale != 1.0f;
  if (scaled) {
    ReduceStore<T, true>(sources, n, accumulate, out, blocks, block_sumsq, stream);
  } else {
    ReduceStore<T, false>(sources, n, accumulate, out, blocks, block_sumsq, stream);
  }
}

void ReduceFloat32(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                   double* block_sumsq, bool stream) {
  ReduceScaled<float>(sources, n, accumulate, out, blocks, block_sumsq, stream);
}
void ReduceBFloat16(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                    double* block_sumsq, bool stream) {
  ReduceScaled<half_simd::Bf16>(sources, n, accumulate, out, blocks, block_sumsq, stream);
}
void ReduceFloat16(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                   double* block_sumsq, bool stream) {
  ReduceScaled<half_simd::Fp16>(sources, n, accumulate, out, blocks, block_sumsq, stream);
}

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
namespace {

HWY_EXPORT(ReduceFloat32);
HWY_EXPORT(ReduceBFloat16);
HWY_EXPORT(ReduceFloat16);

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kBlockAlignment == 0; }

}  // namespace

void ReduceBlocks(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                  double* block_sumsq, bool stream) {
  Require(!(accumulate && stream), "ReduceBlocks: accumulate reads out, stream writes it past the caches");
  Require(n >= 0 && blocks >= 0, "ReduceBlocks: counts must not be negative");
  Require(Aligned(out), "ReduceBlocks: out must be aligned to 64 bytes");
  DType dtype = DType::kFloat32;
  bool any = false;
  for (int k = 0; k < n; ++k) {
    Require(Aligned(sources[k].data), "ReduceBlocks: sources must be aligned to 64 bytes");
    if (sources[k].data == nullptr) continue;
    Require(!any || sources[k].dtype == dtype, "ReduceBlocks: sources must be of one dtype");
    dtype = sources[k].dtype;
    any = true;
  }
  // Null sources in front are dropped here, so that the loops below may start with the first one.
  while (n > 0 && sources->data == nullptr) {
    ++sources;
    --n;
  }
  switch (dtype) {
    case DType::kFloat32:
      return HWY_DYNAMIC_DISPATCH(ReduceFloat32)(sources, n, accumulate, out, blocks, block_sumsq, stream);
    case DType::kBFloat16:
      return HWY_DYNAMIC_DISPATCH(ReduceBFloat16)(sources, n, accumulate, out, blocks, block_sumsq, stream);
    case DType::kFloat16:
      return HWY_DYNAMIC_DISPATCH(ReduceFloat16)(sources, n, accumulate, out, blocks, block_sumsq, stream);
  }
  Require(false, "ReduceBlocks: unknown dtype");
}

}  // namespace kernels
}  // namespace sherd
#endif  // HWY_ONCE

#include "kernels/optimizer_simd.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/lane_tree.h"
#include "kernels/prefetch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/optimizer_simd.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "kernels/squares_simd.inc"  // after it, and once per instruction set, too

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Compiled again here: a function takes on the instruction set of the place where it is written.
#include "kernels/optimizers.inc"

// Work goes line by line: 64 bytes of each array.
constexpr int kLine = 16;
// Two blocks ahead was the best of 1, 2, 4 and 8 where it pays at all, and is also right when the caller
// comes one block at a time.
constexpr int64_t kPrefetchElements = 2 * kBlockElements;

using Tag = hn::CappedTag<float, kLine>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));

struct VectorOps {
  using V = hn::Vec<Tag>;
  static HWY_INLINE V Set(float x) { return hn::Set(Tag(), x); }
  static HWY_INLINE V Sign(V a) {
    const V zero = hn::Zero(Tag()), one = Set(1.0f);
    return hn::Sub(hn::IfThenElseZero(hn::Gt(a, zero), one), hn::IfThenElseZero(hn::Lt(a, zero), one));
  }
  static HWY_INLINE V Add(V a, V b) { return hn::Add(a, b); }
  static HWY_INLINE V Sub(V a, V b) { return hn::Sub(a, b); }
  static HWY_INLINE V Mul(V a, V b) { return hn::Mul(a, b); }
  static HWY_INLINE V Div(V a, V b) { return hn::Div(a, b); }
  static HWY_INLINE V Sqrt(V a) { return hn::Sqrt(a); }
};

// kJournaled: one block, whose old values go to `undo`, line by line, before they change.
template <class Optimizer, bool kJournaled>
HWY_INLINE void UpdateLines(const UpdateArgs& args, const Scalars& scalars, int64_t elements, float* undo,
                            std::atomic<uint64_t>* saved) {
  using V = VectorOps::V;
  const Tag d;
  constexpr int kPlanes = kPlanesOf<Optimizer>;
  // Copies: stores to the planes could otherwise alias them.
  const Scalars s = scalars;
  float* const HWY_RESTRICT param = args.param;
  float* const HWY_RESTRICT plane0 = args.planes[0];
  float* const HWY_RESTRICT plane1 = args.planes[1];
  float* const HWY_RESTRICT plane2 = args.planes[2];
  const float* const HWY_RESTRICT grad = args.grad;
  const int64_t ahead = PrefetchDistance(kPrefetchElements);
  for (int64_t at = 0; at < elements; at += kLine) {
    hwy::Prefetch(grad + at + ahead);
    hwy::Prefetch(param + at + ahead);
    if (kPlanes > 0) hwy::Prefetch(plane0 + at + ahead);
    if (kPlanes > 1) hwy::Prefetch(plane1 + at + ahead);
    if (kPlanes > 2) hwy::Prefetch(plane2 + at + ahead);
    if (kJournaled) {
      for (int64_t i = at; i < at + kLine; i += kLanes) {
        hn::Store(hn::Load(d, param + i), d, undo + i);
        if (kPlanes > 0) hn::Store(hn::Load(d, plane0 + i), d, undo + kBlockElements + i);
        if (kPlanes > 1) hn::Store(hn::Load(d, plane1 + i), d, undo + 2 * kBlockElements + i);
        if (kPlanes > 2) hn::Store(hn::Load(d, plane2 + i), d, undo + 3 * kBlockElements + i);
      }
      saved->store(static_cast<uint64_t>(at + kLine), std::memory_order_release);
      std::atomic_thread_fence(std::memory_order_release);
    }
    for (int64_t i = at; i < at + kLine; i += kLanes) {
      V p = hn::Load(d, param + i);
      V a = kPlanes > 0 ? hn::Load(d, plane0 + i) : hn::Zero(d);
      V b = kPlanes > 1 ? hn::Load(d, plane1 + i) : hn::Zero(d);
      V c = kPlanes > 2 ? hn::Load(d, plane2 + i) : hn::Zero(d);
      Optimizer::template Update<VectorOps>(s, hn::Load(d, grad + i), p, a, b, c);
      hn::Store(p, d, param + i);
      if (kPlanes > 0) hn::Store(a, d, plane0 + i);
      if (kPlanes > 1) hn::Store(b, d, plane1 + i);
      if (kPlanes > 2) hn::Store(c, d, plane2 + i);
    }
  }
}

template <class Optimizer>
void Update(const UpdateArgs& args, const Scalars& scalars, int64_t elements) {
  UpdateLines<Optimizer, false>(args, scalars, elements, nullptr, nullptr);
}

template <class Optimizer>
void UpdateJournaled(const UpdateArgs& args, const Scalars& scalars, float* undo,
                     std::atomic<uint64_t>* saved) {
  UpdateLines<Optimizer, true>(args, scalars, kBlockElements, undo, saved);
}

template <class Optimizer>
void Save(const UpdateArgs& args, float* undo) {
  const Tag d;
  const int64_t ahead = PrefetchDistance(kPrefetchElements);
  for (int k = 0; k <= kPlanesOf<Optimizer>; ++k) {
    const float* const HWY_RESTRICT from = k == 0 ? args.param : args.planes[k - 1];
    float* const HWY_RESTRICT to = undo + k * kBlockElements;
    for (int64_t at = 0; at < kBlockElements; at += kLine) {
      hwy::Prefetch(from + at + ahead);
      for (int64_t i = at; i < at + kLine; i += kLanes) hn::Store(hn::Load(d, from + i), d, to + i);
    }
  }
}

// One line of each array to its place in `undo`; then `saved` says so, before any of it may change.
template <int kArrays>
HWY_INLINE void SaveLine(float* const (&arrays)[kArrays], int64_t at, float* undo,
                         std::atomic<uint64_t>* saved) {
  const Tag d;
  for (int k = 0; k < kArrays; ++k) {
    for (int64_t i = at; i < at + kLine; i += kLanes)
      hn::Store(hn::Load(d, arrays[k] + i), d, undo + k * kBlockElements + i);
  }
  saved->store(static_cast<uint64_t>(at + kLine), std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_release);
}

template <class Optimizer>
void Move(const UpdateArgs& args, float* grad, const Scalars& scalars, float* undo,
          std::atomic<uint64_t>* saved, double norms[2]) {
  static_assert(kPlanesOf<Optimizer> == 2);
  const Tag d;
  const Scalars s = scalars;
  float* const arrays[] = {grad, args.planes[0], args.planes[1]};
  squares_simd::DoubleVec values[squares_simd::kDoubleVecs], directions[squares_simd::kDoubleVecs];
  squares_simd::Clear(values);
  squares_simd::Clear(directions);
  const int64_t ahead = PrefetchDistance(kPrefetchElements);
  for (int64_t at = 0; at < kBlockElements; at += kLine) {
    hwy::Prefetch(args.param + at + ahead);
    for (const float* array : arrays) hwy::Prefetch(array + at + ahead);
    SaveLine(arrays, at, undo, saved);
    for (int j = 0; j < kLine / kLanes; ++j) {
      const int64_t i = at + j * kLanes;
      const auto p = hn::Load(d, args.param + i);
      auto a = hn::Load(d, arrays[1] + i), b = hn::Load(d, arrays[2] + i);
      const auto direction = Optimizer::template Direction<VectorOps>(s, hn::Load(d, grad + i), p, a, b);
      hn::Store(direction, d, grad + i);
      hn::Store(a, d, arrays[1] + i);
      hn::Store(b, d, arrays[2] + i);
      squares_simd::AddSquares(p, j, values);
      squares_simd::AddSquares(direction, j, directions);
    }
  }
  norms[0] = squares_simd::Sum(values);
  norms[1] = squares_simd::Sum(directions);
}

template <class Optimizer>
void Follow(float* param, const float* direction, const Scalars& scalars, float* undo,
            std::atomic<uint64_t>* saved) {
  const Tag d;
  const Scalars s = scalars;
  float* const arrays[] = {param};
  const int64_t ahead = PrefetchDistance(kPrefetchElements);
  for (int64_t at = 0; at < kBlockElements; at += kLine) {
    hwy::Prefetch(param + at + ahead);
    hwy::Prefetch(direction + at + ahead);
    SaveLine(arrays, at, undo, saved);
    for (int64_t i = at; i < at + kLine; i += kLanes) {
      const auto moved =
          Optimizer::template Follow<VectorOps>(s, hn::Load(d, param + i), hn::Load(d, direction + i));
      hn::Store(moved, d, param + i);
    }
  }
}

template <class Optimizer>
constexpr TwoPasses PassesOf() {
  if constexpr (FindOptimizer(Optimizer::kKind)->norms) {
    return {&Move<Optimizer>, &Follow<Optimizer>};
  } else {
    return {nullptr, nullptr};
  }
}

template <class... Optimizers>
SimdFunctions Find(OptimizerKind kind, OptimizerList<Optimizers...>) {
  SimdFunctions found = {};
  ((Optimizers::kKind == kind ? void(found = {&Update<Optimizers>, &UpdateJournaled<Optimizers>,
                                              &Save<Optimizers>, PassesOf<Optimizers>()})
                              : void()),
   ...);
  return found;
}

SimdFunctions FindKind(OptimizerKind kind) { return Find(kind, AllOptimizers()); }

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
namespace {
HWY_EXPORT(FindKind);
}  // namespace

SimdFunctions ResolveSimd(OptimizerKind kind) {
  const SimdFunctions found = HWY_DYNAMIC_DISPATCH(FindKind)(kind);
  Require(found.update != nullptr, "unknown OptimizerKind; check it with FindOptimizer first");
  return found;
}

const char* SimdName() {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(targets & -targets);  // lower bits are better
}

}  // namespace kernels
}  // namespace sherd
#endif  // HWY_ONCE

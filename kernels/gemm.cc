#include "kernels/gemm.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once per instruction set.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd {
namespace kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<float, kGemmColumns>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kRows = 4;

// kRowCount rows of c, kVecs vectors of columns, over all of k. `panel`: those columns of b, packed.
template <int kRowCount, int kVecs>
HWY_INLINE void Tile(const float* a, int64_t lda, const float* panel, int64_t k, float* c, int64_t ldc) {
  const Tag d;
  hn::Vec<Tag> sum[kRowCount][kVecs];
  for (auto& row : sum) {
    for (auto& v : row) v = hn::Zero(d);
  }
  for (int64_t p = 0; p < k; ++p) {
    hn::Vec<Tag> b[kVecs];
    for (int v = 0; v < kVecs; ++v) b[v] = hn::Load(d, panel + (p * kVecs + v) * kLanes);
    for (int r = 0; r < kRowCount; ++r) {
      const auto x = hn::Set(d, a[r * lda + p]);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Add(sum[r][v], hn::Mul(x, b[v]));
    }
  }
  for (int r = 0; r < kRowCount; ++r) {
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[r][v], d, c + r * ldc + v * kLanes);
  }
}

template <int kVecs>
void Columns(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, float* panel,
             float* c, int64_t ldc) {
  const Tag d;
  for (int64_t p = 0; p < k; ++p) {
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(hn::Load(d, b + p * ldb + v * kLanes), d, panel + (p * kVecs + v) * kLanes);
    }
  }
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) Tile<kRows, kVecs>(a + i * lda, lda, panel, k, c + i * ldc, ldc);
  for (; i < m; ++i) Tile<1, kVecs>(a + i * lda, lda, panel, k, c + i * ldc, ldc);
}

void GemmSimd(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, int64_t n,
              float* scratch, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) Columns<2>(a, lda, b + j, ldb, m, k, scratch, c + j, ldc);
  for (; j < n; j += kLanes) Columns<1>(a, lda, b + j, ldb, m, k, scratch, c + j, ldc);
}

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace sherd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd {
namespace kernels {
namespace {
HWY_EXPORT(GemmSimd);
}  // namespace

void Gemm(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, int64_t n,
          float* scratch, float* c, int64_t ldc) {
  HWY_DYNAMIC_DISPATCH(GemmSimd)(a, lda, b, ldb, m, k, n, scratch, c, ldc);
}

void GemmScalar(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, int64_t n,
                float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    std::fill_n(c + i * ldc, n, 0.0f);
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += a[i * lda + p] * b[p * ldb + j];
    }
  }
}

}  // namespace kernels
}  // namespace sherd
#endif  // HWY_ONCE

// Matrix product in fp32 with one fixed order of additions, for what must come out the same on every machine.
#ifndef SHERD_KERNELS_GEMM_H_
#define SHERD_KERNELS_GEMM_H_

#include <cstdint>

namespace sherd {
namespace kernels {

// Columns are padded to a multiple of this: rows begin at multiples of 64 bytes.
constexpr int64_t kGemmColumns = 16;
constexpr int64_t PaddedColumns(int64_t n) { return (n + kGemmColumns - 1) / kGemmColumns * kGemmColumns; }

// Floats of the scratch that Gemm needs for products over `k`.
constexpr int64_t GemmScratch(int64_t k) { return k * 2 * kGemmColumns; }

// c = a * b: a is m x k, b is k x n, c is m x n, row by row; a row of each takes lda, ldb, ldc floats. Every
// element is ((0 + a[i][0] * b[0][j]) + a[i][1] * b[1][j]) + ..., each product and sum rounded by itself, so
// every instruction set gives the same bits, as does GemmScalar. One thread; never allocates. c overlaps
// nothing.
// REQUIRES: n, ldb and ldc are multiples of kGemmColumns; b, c and scratch are aligned to 64 bytes.
void Gemm(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, int64_t n,
          float* scratch, float* c, int64_t ldc);

// The same in a plain loop: the reference.
void GemmScalar(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k, int64_t n,
                float* c, int64_t ldc);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_GEMM_H_

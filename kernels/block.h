// The block: 256 consecutive elements of a unit, the grain at which kernels work, norms are taken, and the
// server journals. Also the two things every kernel header needs: element types and the host/device marker.
#ifndef SHERD_KERNELS_BLOCK_H_
#define SHERD_KERNELS_BLOCK_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__CUDACC__)
#define SHERD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SHERD_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace sherd {
namespace kernels {

// Elements of a block. Every kernel takes whole blocks; the tail of a tensor's last block is padding, which
// is zero and which every kernel keeps zero.
constexpr int64_t kBlockElements = 256;

// Every pointer to block data is aligned to this many bytes (a cache line, and the widest vector).
constexpr int64_t kBlockAlignment = 64;

// The sum of squares of a block is taken in this many lanes: element i goes to lane i % kNormLanes.
constexpr int kNormLanes = 16;

// Element type of a gradient source or of compute parameters. Values are stable: they may be written to
// shared memory.
enum class DType : uint8_t { kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Bytes of one element.
constexpr int64_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Stops the program when a caller broke a contract. For programmer errors alone: what a peer, a file or a
// user sends is checked above this layer.
[[noreturn]] inline void BreakContract(const char* what) {
  std::fprintf(stderr, "sherd kernels: contract broken: %s\n", what);
  std::abort();
}
inline void Require(bool ok, const char* what) {
  if (!ok) BreakContract(what);
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_BLOCK_H_

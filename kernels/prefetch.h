// Internal to kernels/: how far ahead of its use memory is asked for.
#ifndef SHERD_KERNELS_PREFETCH_H_
#define SHERD_KERNELS_PREFETCH_H_

#include <cstdint>

namespace sherd {
namespace kernels {

// `elements` where that pays on this processor, else 0: then a line is asked for right before it is read.
// Intel's prefetchers stop at each page of 4 KiB, and asking early carries a stream over that edge; those of
// AMD's Zen get by alone, and lose to every request that is not a read (bench/README.md).
inline int64_t PrefetchDistance(int64_t elements) {
  static const bool pays = __builtin_cpu_is("intel");
  return pays ? elements : 0;
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_PREFETCH_H_

// Copies that go past the caches: for gradients on their way out of a trainer, which another core reads much
// later.
#ifndef SHERD_KERNELS_STREAM_COPY_H_
#define SHERD_KERNELS_STREAM_COPY_H_

#include <cstdint>

namespace sherd {
namespace kernels {

// Copies `bytes` with non-temporal stores (fenced before return): the lines of `to` are neither read nor kept
// in the cache. Right for copies much larger than the cache. REQUIRES: `to` aligned to 64 bytes; no overlap.
// `from` needs no alignment. Thread-safe.
void StreamCopy(void* to, const void* from, int64_t bytes);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_STREAM_COPY_H_

#include "client/batch.h"

#include "core/splitmix.h"

namespace sherd {

uint64_t SeedOf(uint64_t seed, uint64_t step, int rank, int micro) {
  return SplitMix64(SplitMix64(SplitMix64(seed) ^ step) ^
                    (static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(micro)));
}

SampleRange ShareOf(int64_t global_batch, int64_t world_size, int64_t rank, int64_t micros, int64_t micro) {
  const int64_t parts = world_size * micros;
  const int64_t part = rank * micros + micro;
  return {global_batch * part / parts, global_batch * (part + 1) / parts};
}

}  // namespace sherd

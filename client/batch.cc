#include "client/batch.h"

namespace sherd {

SampleRange ShareOf(int64_t global_batch, int64_t world_size, int64_t rank, int64_t micros, int64_t micro) {
  const int64_t parts = world_size * micros;
  const int64_t part = rank * micros + micro;
  return {global_batch * part / parts, global_batch * (part + 1) / parts};
}

}  // namespace sherd

#include "kernels/lane_tree.h"
#include "kernels/reduce.h"

namespace sherd {
namespace kernels {
void ReduceBlocksScalar(const Source* sources, int n, bool accumulate, float* out, int64_t blocks,
                        double* block_sumsq, bool stream) {
  Require(!(accumulate && stream),
          "ReduceBlocksScalar: accumulate reads out, stream writes it past the caches");
  for (int64_t b = 0; b < blocks; ++b) {
    double lanes[kNormLanes] = {};
    for (int64_t i = b * kBlockElements; i < (b + 1) * kBlockElements; ++i) {
      float t = 0;
      bool started = false;
      for (int k = 0; k < n; ++k) {
        if (sources[k].data == nullptr) continue;
        const float x = ElementOf(sources[k], i) * sources[k].scale;
        t = started ? t + x : x;
        started = true;
      }
      out[i] = accumulate ? out[i] + t : t;
      lanes[i % kNormLanes] += static_cast<double>(out[i]) * static_cast<double>(out[i]);
    }
    block_sumsq[b] = SumLanes(lanes);
  }
}

}  // namespace kernels
}  // namespace sherd

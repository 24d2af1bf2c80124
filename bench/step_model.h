// Sizes of workload O (bench/README.md). Torch-free.
#ifndef SHERD_BENCH_STEP_MODEL_H_
#define SHERD_BENCH_STEP_MODEL_H_

#include <cstdint>

#include "core/types.h"

namespace sherd::bench {

struct StepModel {
  int blocks = 8;
  int64_t width = 2828;
  int64_t batch = 4;                  // samples a rank
  DType precision = DType::kFloat32;  // of parameters and gradients
  bool lamb = false;                  // by LAMB instead of AdamW
  int64_t elements() const { return blocks * width * width; }
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_STEP_MODEL_H_

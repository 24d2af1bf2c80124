// Where trainers read parameters: a tensor of fp32 in the masters, one of JobSpec::compute in the rounded
// copy.
//
//   for (const ValueRun& run : ValueRuns(layout, blocks)) ...   // in order; neighbours in one plane are one
//
// Pure; thread-safe.
#ifndef SHERD_CORE_VALUE_RUNS_H_
#define SHERD_CORE_VALUE_RUNS_H_

#include <vector>

#include "core/layout.h"

namespace sherd {

struct ValueRun {
  bool masters = true;
  BlockRange blocks;
};

// REQUIRES: `blocks` is empty or within the layout.
inline std::vector<ValueRun> ValueRuns(const Layout& layout, BlockRange blocks) {
  std::vector<ValueRun> runs;
  layout.ForEachRun(blocks, [&](int tensor, BlockRange run) {
    const bool masters = layout.tensors()[tensor].spec.dtype == DType::kFloat32;
    if (!runs.empty() && runs.back().masters == masters && runs.back().blocks.end == run.begin) {
      runs.back().blocks.end = run.end;
    } else {
      runs.push_back({masters, run});
    }
  });
  return runs;
}

}  // namespace sherd

#endif  // SHERD_CORE_VALUE_RUNS_H_

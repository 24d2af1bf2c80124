// The arithmetic of batches: train = micro x accumulation x world.
//
//   FillBatchSizes({64, absl::nullopt, 4}, /*world_size=*/8)    // {64, 2, 4}
//
// Pure; thread-safe.
#ifndef SHERD_CLIENT_CONFIG_BATCH_SIZES_H_
#define SHERD_CLIENT_CONFIG_BATCH_SIZES_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/optional.h"

namespace sherd::config {

// As far as they were stated.
struct AskedBatchSizes {
  absl::optional<int64_t> train;         // samples of a step, over all trainers
  absl::optional<int64_t> micro;         // samples of one trainer's forward
  absl::optional<int64_t> accumulation;  // micro-batches of a step
};

struct BatchSizes {
  int64_t train = 1, micro = 1, accumulation = 1;
};

// Any two give the third; `train` or `micro` alone means accumulation 1. INVALID_ARGUMENT with all four
// numbers if they do not agree exactly, or if neither `train` nor `micro` is there.
// REQUIRES: world_size >= 1; numbers stated are >= 1.
absl::StatusOr<BatchSizes> FillBatchSizes(const AskedBatchSizes& asked, int world_size);

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_BATCH_SIZES_H_

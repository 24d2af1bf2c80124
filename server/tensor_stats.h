// Figures of one tensor in one plane of a snapshot: norm, mean, extremes, what is not finite, histogram.
//
//   absl::StatusOr<TensorFigures> f = ComputeFigures(stream, /*bins=*/20);
#ifndef SHERD_SERVER_TENSOR_STATS_H_
#define SHERD_SERVER_TENSOR_STATS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "server/tensor_stream.h"

namespace sherd::server {

struct TensorFigures {
  double norm = 0;  // square root of the sum of squares of finite values
  double mean = 0;  // of finite values; 0 if there are none, as are min and max
  double min = 0;
  double max = 0;
  int64_t nans = 0;
  int64_t infs = 0;
  std::vector<int64_t> histogram;  // finite values in equal bins over [min, max]
};

// `stream` holds exactly the tensor's values in fp32. Reads it once, twice if bins > 0. Errors are the
// stream's.
absl::StatusOr<TensorFigures> ComputeFigures(TensorStream& stream, int bins);

}  // namespace sherd::server

#endif  // SHERD_SERVER_TENSOR_STATS_H_

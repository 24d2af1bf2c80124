// The slice of a tensor as people write it, after NumPy: "0:10,:" is rows 0 to 9; "3" row 3 alone (and one
// dimension less); "::2" every other; "-1" the last. Dimensions left out at the end are whole.
//
//   StatusOr<SliceSpec> spec = ParseSlice("3,0:10");
//   StatusOr<ResolvedSlice> slice = Resolve(*spec, {50, 64});     // dimensions {3,4,1}, {0,10,1}; shape {10}
//
// Pure; thread-safe.
#ifndef SHERD_CLIENT_CLI_SLICE_SPEC_H_
#define SHERD_CLIENT_CLI_SLICE_SPEC_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/slice.h"

namespace sherd::cli {

struct SliceSpecDimension {
  bool index = false;  // one element, `start`; the dimension goes
  std::optional<int64_t> start, stop;
  int64_t step = 1;
};
using SliceSpec = std::vector<SliceSpecDimension>;

// Empty text: the whole tensor. INVALID_ARGUMENT names the part that cannot be read, or a step below 1.
absl::StatusOr<SliceSpec> ParseSlice(absl::string_view text);

struct ResolvedSlice {
  std::vector<Slice::Dimension> dimensions;  // one for each of the tensor
  std::vector<int64_t> shape;                // of the result
};

// Negative numbers count from the end. OUT_OF_RANGE names dimension, value and size for whatever does not lie
// in the tensor (unlike NumPy, which cuts silently), and for too many dimensions.
absl::StatusOr<ResolvedSlice> Resolve(const SliceSpec& spec, const std::vector<int64_t>& shape);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_SLICE_SPEC_H_

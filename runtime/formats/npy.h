// One fp32 tensor as a .npy file (NumPy format 1.0, '<f4', row-major): what `numpy.load` opens.
//
//   WriteNpy("wte.npy", values, {50257, 768});
#ifndef SHERD_RUNTIME_FORMATS_NPY_H_
#define SHERD_RUNTIME_FORMATS_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sherd::formats {

struct NpyArray {
  std::vector<int64_t> shape;  // empty: a scalar
  std::vector<float> values;   // row-major
};

// Everything before the values: a multiple of 64 bytes. INVALID_ARGUMENT for a negative dimension or a shape
// too long for version 1.0 (about 3,000 dimensions).
absl::StatusOr<std::string> NpyHeader(const std::vector<int64_t>& shape);

// Writes the file whole or not at all, durably. INVALID_ARGUMENT if the shape does not hold values.size()
// elements; else as AtomicFile::Create. Blocks; thread-safe.
absl::Status WriteNpy(const std::string& path, absl::Span<const float> values,
                      const std::vector<int64_t>& shape);

// Reads what WriteNpy wrote, or NumPy for a row-major '<f4' array. INVALID_ARGUMENT "<path>: ..." for
// anything else: other versions, types and orders, a malformed header, bytes that do not match the shape.
// Allocates at most the file's size, twice.
absl::StatusOr<NpyArray> ReadNpy(const std::string& path);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_NPY_H_

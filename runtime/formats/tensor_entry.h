// What a tensor in a file is called and looks like, whatever the file's format.
#ifndef SHERD_RUNTIME_FORMATS_TENSOR_ENTRY_H_
#define SHERD_RUNTIME_FORMATS_TENSOR_ENTRY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/formats/stored_type.h"

namespace sherd::formats {

// A tensor to be stored. Dimensions are >= 0; no dimension means a scalar.
struct TensorSpec {
  std::string name;
  StoredType dtype = StoredType::kF32;
  std::vector<int64_t> shape;
};

// A stored tensor: bytes [begin, end) of its file's data where a format has such a thing, else begin is 0.
struct TensorEntry {
  std::string name;
  StoredType dtype = StoredType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
  // The file knows only how many elements there are: `shape` is one row of them.
  bool flat = false;
  // Comes along with others: whoever does not know the name may leave it.
  bool optional = false;
  uint64_t bytes() const { return end - begin; }
};

// "[2,3]", of at most 8 dimensions: for messages.
std::string ShapeText(const std::vector<int64_t>& shape);

// Bytes of a tensor. INVALID_ARGUMENT for a negative dimension or a size past 2^63 - 1. Pure.
absl::StatusOr<uint64_t> BytesOf(StoredType dtype, const std::vector<int64_t>& shape);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TENSOR_ENTRY_H_

#include "runtime/formats/tensor_entry.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sherd::formats {

std::string ShapeText(const std::vector<int64_t>& shape) {
  constexpr size_t kShown = 8;
  const auto last = shape.begin() + std::min(kShown, shape.size());
  return absl::StrCat("[", absl::StrJoin(shape.begin(), last, ","), shape.size() > kShown ? ",...]" : "]");
}

absl::StatusOr<uint64_t> BytesOf(StoredType dtype, const std::vector<int64_t>& shape) {
  constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();
  uint64_t bytes = SizeOf(dtype);
  for (int64_t dimension : shape) {
    if (dimension < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape ", ShapeText(shape), " has a negative dimension"));
    }
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes) || bytes > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(Name(dtype), " ", ShapeText(shape), " takes more than 2^63-1 bytes"));
    }
  }
  return bytes;
}

}  // namespace sherd::formats

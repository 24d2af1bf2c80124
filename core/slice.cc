#include "core/slice.h"

#include "absl/strings/str_cat.h"

namespace sherd {

Slice Slice::Whole(const std::vector<int64_t>& shape) {
  std::vector<Dimension> all;
  for (const int64_t size : shape) all.push_back({0, size, 1});
  return *Create(shape, all);
}

absl::StatusOr<Slice> Slice::Create(const std::vector<int64_t>& shape,
                                    const std::vector<Dimension>& dimensions) {
  if (dimensions.size() != shape.size()) {
    return absl::OutOfRangeError(
        absl::StrCat("slice has ", dimensions.size(), " dimensions but the tensor has ", shape.size()));
  }
  Slice s;
  s.numel_ = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    const Dimension& dim = dimensions[d];
    if (dim.start < 0 || dim.stop < dim.start || dim.stop > shape[d] || dim.step < 1) {
      return absl::OutOfRangeError(absl::StrCat("slice ", dim.start, ":", dim.stop, ":", dim.step,
                                                " of dimension ", d, " is not within 0:", shape[d],
                                                " with a step of at least 1"));
    }
    // Not (stop - start + step - 1) / step: a huge step would overflow.
    const int64_t count = dim.stop == dim.start ? 0 : (dim.stop - dim.start - 1) / dim.step + 1;
    s.shape_.push_back(count);
    s.numel_ *= count;
  }
  if (s.numel_ == 0) return s;
  // From the fastest dimension outwards; dimensions that continue the run below them are folded into it.
  s.inner_ = {1, 1};
  int64_t pitch = 1;  // elements of the tensor from one index of dimension d to the next
  for (size_t d = shape.size(); d-- > 0;) {
    const Dimension& dim = dimensions[d];
    s.base_ += dim.start * pitch;
    if (s.shape_[d] > 1) {
      const Axis axis = {s.shape_[d], dim.step * pitch};
      if (s.outer_.empty() && (s.inner_.count == 1 || axis.stride == s.inner_.count * s.inner_.stride)) {
        s.inner_ = {s.inner_.count * axis.count, s.inner_.count == 1 ? axis.stride : s.inner_.stride};
      } else {
        s.outer_.insert(s.outer_.begin(), axis);
      }
    }
    pitch *= shape[d];
  }
  return s;
}

}  // namespace sherd

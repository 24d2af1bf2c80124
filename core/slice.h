// A rectangular, possibly strided part of a tensor, as runs of its row-major elements.
//
//   StatusOr<Slice> s = Slice::Create({4, 6}, {{1, 3, 1}, {0, 6, 2}});    // rows 1 and 2, every other column
//   s->shape();                                                           // {2, 3}
//   s->ForEachRun(0, 6, [](int64_t first, int64_t count, int64_t stride) {...});    // (6, 3, 2), (12, 3, 2)
//
// Pure; thread-safe.
#ifndef SHERD_CORE_SLICE_H_
#define SHERD_CORE_SLICE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace sherd {

class Slice {
 public:
  // Elements start, start + step, ... below stop.
  struct Dimension {
    int64_t start = 0;
    int64_t stop = 0;
    int64_t step = 1;
  };

  // The whole of a tensor. REQUIRES: shape is that of a Layout's tensor.
  static Slice Whole(const std::vector<int64_t>& shape);

  // `dimensions` of a tensor of `shape`, one for each of its dimensions.
  //   OUT_OF_RANGE  their number differs, or not 0 <= start <= stop <= size, or step < 1: names the dimension
  //   and the values
  static absl::StatusOr<Slice> Create(const std::vector<int64_t>& shape,
                                      const std::vector<Dimension>& dimensions);

  const std::vector<int64_t>& shape() const { return shape_; }  // of the result
  int64_t numel() const { return numel_; }                      // of the result

  // Calls fn(first, count, stride) for elements [begin, end) of the result, in order: `count` elements of the
  // tensor from its row-major element `first` on, `stride` apart. A slice that is contiguous in the tensor is
  // one run. REQUIRES: 0 <= begin <= end <= numel().
  template <typename Fn>
  void ForEachRun(int64_t begin, int64_t end, Fn fn) const;

 private:
  // Outer dimensions of the result, and one inner run: elements of the tensor between neighbours.
  struct Axis {
    int64_t count = 0;
    int64_t stride = 0;
  };
  std::vector<int64_t> shape_;
  int64_t numel_ = 0;
  int64_t base_ = 0;         // tensor's element of the first one
  std::vector<Axis> outer_;  // slowest first
  Axis inner_;
};

template <typename Fn>
void Slice::ForEachRun(int64_t begin, int64_t end, Fn fn) const {
  while (begin < end) {
    const int64_t within = begin % inner_.count;
    int64_t row = begin / inner_.count;
    int64_t first = base_ + within * inner_.stride;
    for (size_t d = outer_.size(); d-- > 0;) {
      first += row % outer_[d].count * outer_[d].stride;
      row /= outer_[d].count;
    }
    const int64_t count = std::min(inner_.count - within, end - begin);
    fn(first, count, inner_.stride);
    begin += count;
  }
}

}  // namespace sherd

#endif  // SHERD_CORE_SLICE_H_

// The shape of a model as Sherd stores it: ordered units, each an ordered list of tensors, cut into blocks of
// kBlockElements. It does not depend on how many trainers or servers there are.
//
//   absl::StatusOr<Layout> layout = Layout::Create({{{"wte", {50257, 768}}, {"bias", {768}}}, {{"ln", {}}}});
//   layout->total_blocks();               // 150771 + 3 + 1
//   layout->TensorAt(150771);             // 1: "bias"
//
// Every tensor starts on a block boundary of its unit, so that views are aligned and no result depends on how
// tensors are packed. A block therefore belongs to exactly one tensor; the last block of a tensor may be
// partly padding. Block indices are global: the units one after another.
//
// A Layout is immutable and thread-safe; copies share one representation, so it is passed by value or kept in
// a shared_ptr<const Layout> alike.
#ifndef SHERD_CORE_LAYOUT_H_
#define SHERD_CORE_LAYOUT_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "core/types.h"

namespace sherd {

// Bounds of a layout: what a peer may declare. A layout past them is refused, so that sums of elements, and
// of their bytes over a dozen planes, never overflow an int64.
inline constexpr int64_t kMaxTensors = 1000000;
inline constexpr int64_t kMaxTensorNameBytes = 512;
inline constexpr int64_t kMaxTensorRank = 16;
inline constexpr int64_t kMaxLayoutElements = int64_t{1} << 52;  // padding to blocks included
inline constexpr int32_t kMaxGroup = 65535;

// A tensor as the trainer declares it.
struct TensorSpec {
  std::string name;               // unique in the layout, 1..kMaxTensorNameBytes bytes of UTF-8
  std::vector<int64_t> shape;     // elements per dimension, each >= 0; empty for a scalar
  DType dtype = DType::kFloat32;  // as the trainer computes with it; masters are always fp32
  int32_t group = 0;              // parameter group (own lr, betas, decay), 0..kMaxGroup
  bool trainable = true;          // false: has a `param` plane only and never gets a gradient

  friend bool operator==(const TensorSpec& a, const TensorSpec& b) {
    return a.name == b.name && a.shape == b.shape && a.dtype == b.dtype && a.group == b.group &&
           a.trainable == b.trainable;
  }
};

// A tensor in its place.
struct TensorInfo {
  TensorSpec spec;
  int index = 0;      // in Layout::tensors()
  int unit = 0;       // in Layout::units()
  int64_t numel = 0;  // elements, padding not counted: 1 for a scalar, 0 if a dimension is 0
  BlockRange blocks;  // global; empty for an empty tensor

  // Elements of `block` that belong to this tensor (the rest is padding), 1..kBlockElements.
  // REQUIRES: blocks.begin <= block < blocks.end.
  int64_t ElementsIn(int64_t block) const {
    return std::min(kBlockElements, numel - (block - blocks.begin) * kBlockElements);
  }
};

// A unit: tensors reduced and gathered together.
struct UnitInfo {
  BlockRange blocks;     // global; empty if all its tensors are
  int first_tensor = 0;  // its tensors are [first_tensor, end_tensor) of Layout::tensors()
  int end_tensor = 0;
};

class Layout {
 public:
  // The layout of `units`, in the given order. Units without tensors, and no units at all, are allowed.
  //   INVALID_ARGUMENT  a name is empty, repeated, too long or not UTF-8; a dimension is negative; a rank,
  //   the
  //                     number of tensors, or a count of elements is too large; a group or dtype is unknown.
  //                     The message names the tensor and the value.
  static absl::StatusOr<Layout> Create(std::vector<std::vector<TensorSpec>> units);

  // In order. The references live as long as any copy of this layout.
  const std::vector<UnitInfo>& units() const { return rep_->units; }
  const std::vector<TensorInfo>& tensors() const { return rep_->tensors; }
  int64_t total_blocks() const { return rep_->total_blocks; }
  // Sum of numel over tensors: padding is not counted.
  int64_t total_elements() const { return rep_->total_elements; }

  // The tensor called `name`, or nullptr. O(log tensors).
  const TensorInfo* Find(absl::string_view name) const;

  // Index of the tensor, or of the unit, that holds `block`. O(log tensors).
  // REQUIRES: 0 <= block < total_blocks().
  int TensorAt(int64_t block) const;
  int UnitAt(int64_t block) const { return tensors()[TensorAt(block)].unit; }

  // Calls fn(int tensor, BlockRange sub) for each tensor that has blocks in `range`, in order; the `sub` are
  // not empty, lie in one tensor each, and together are `range`. REQUIRES: `range` is empty or within the
  // layout.
  template <typename Fn>
  void ForEachRun(BlockRange range, Fn fn) const;

  // Identifies the layout among processes and machines: equal for equal layouts, on any byte order, for ever.
  // FNV-1a (64 bits: offset 0xcbf29ce484222325, prime 0x100000001b3) over these bytes, where an integer is
  // 8 bytes, least significant first, and a string is its length as an integer and then its bytes:
  //   string "sherd.layout.1", integer kBlockElements, integer number of units; then per unit: integer number
  //   of tensors; then per tensor: string name, integer rank, each dimension as an integer, integer dtype (1
  //   fp32, 2 bf16, 3 fp16), integer group, integer trainable (0 or 1).
  uint64_t hash() const { return rep_->hash; }

  // Copies share; there is no moved-from state.
  Layout(const Layout&) = default;
  Layout& operator=(const Layout&) = default;

  friend bool operator==(const Layout& a, const Layout& b);
  friend bool operator!=(const Layout& a, const Layout& b) { return !(a == b); }

 private:
  struct Rep {
    std::vector<UnitInfo> units;
    std::vector<TensorInfo> tensors;
    std::vector<int> by_name;  // tensor indices, sorted by name
    int64_t total_blocks = 0;
    int64_t total_elements = 0;
    uint64_t hash = 0;
  };
  explicit Layout(std::shared_ptr<const Rep> rep) : rep_(std::move(rep)) {}
  static absl::Status AddTensor(TensorSpec spec, int unit, Rep& rep);
  static absl::Status IndexNames(Rep& rep);

  std::shared_ptr<const Rep> rep_;
};

// Elements of `shape`: 1 for a scalar, 0 if a dimension is 0; nullopt if a dimension is negative or the
// product passes kMaxLayoutElements. (A dimension of 0 makes any others harmless.)
absl::optional<int64_t> CountElements(const std::vector<int64_t>& shape);

// Blocks that `numel` elements take. REQUIRES: 0 <= numel <= kMaxLayoutElements.
constexpr int64_t BlocksFor(int64_t numel) { return (numel + kBlockElements - 1) / kBlockElements; }

// Packs tensors, in the given order, greedily into units of at most `bucket_elements` elements (counting
// padding to blocks); a tensor larger than that stands alone. Trainable tensors come first, in the order
// their gradients are expected, so that a unit is complete early in backward; frozen ones follow in units of
// their own. Tensors with an invalid shape stand alone, for Layout::Create to name.
std::vector<std::vector<TensorSpec>> PackUnits(std::vector<TensorSpec> in_gradient_order,
                                               int64_t bucket_elements);

template <typename Fn>
void Layout::ForEachRun(BlockRange range, Fn fn) const {
  if (range.empty()) return;
  const std::vector<TensorInfo>& all = tensors();
  for (size_t t = static_cast<size_t>(TensorAt(range.begin)); range.begin < range.end; ++t) {
    const BlockRange sub{range.begin, std::min(range.end, all[t].blocks.end)};
    if (!sub.empty()) fn(static_cast<int>(t), sub);
    range.begin = sub.end;
  }
}

}  // namespace sherd

#endif  // SHERD_CORE_LAYOUT_H_

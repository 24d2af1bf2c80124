// Strong types for the quantities that are easy to mix up, and the one constant of the partition.
//
//   Rank r(3);  Step s(17);  ++s;  r.value();   // Rank(3) + Step(1) does not compile
//
// Trivially copyable, the size of their integer: they may stand in shared memory.
#ifndef SHERD_CORE_TYPES_H_
#define SHERD_CORE_TYPES_H_

#include <cstdint>
#include <ostream>
#include <string>

namespace sherd {

// One integer with a name. Comparable, hashable by value(); arithmetic only where a Tag's users need it (++).
template <typename Tag, typename Int>
class Strong {
 public:
  using Value = Int;
  constexpr Strong() = default;
  constexpr explicit Strong(Int value) : value_(value) {}
  constexpr Int value() const { return value_; }
  constexpr Strong& operator++() {
    ++value_;
    return *this;
  }
  constexpr Strong Next() const { return Strong(static_cast<Int>(value_ + 1)); }
  friend constexpr bool operator==(Strong a, Strong b) { return a.value_ == b.value_; }
  friend constexpr bool operator!=(Strong a, Strong b) { return a.value_ != b.value_; }
  friend constexpr bool operator<(Strong a, Strong b) { return a.value_ < b.value_; }
  friend constexpr bool operator<=(Strong a, Strong b) { return a.value_ <= b.value_; }
  friend constexpr bool operator>(Strong a, Strong b) { return a.value_ > b.value_; }
  friend constexpr bool operator>=(Strong a, Strong b) { return a.value_ >= b.value_; }
  template <typename H>
  friend H AbslHashValue(H h, Strong s) {
    return H::combine(std::move(h), s.value_);
  }
  friend std::ostream& operator<<(std::ostream& os, Strong s) { return os << +s.value_; }

 private:
  Int value_ = 0;
};

// A trainer's position, 0..W-1.
using Rank = Strong<struct RankTag, int32_t>;
// An owner's position in an epoch, 0..M-1. A server process normally stands in one slot.
using Slot = Strong<struct SlotTag, int32_t>;
// Membership generation; rises by one at each change. 0 is before the first.
using Epoch = Strong<struct EpochTag, uint64_t>;
// Optimizer updates decided. Step s is the s-th update; 0 is the state as initialised.
using Step = Strong<struct StepTag, uint64_t>;
// The how-manieth life of a member (a process) in its place.
using Incarnation = Strong<struct IncarnationTag, uint64_t>;

// Elements a block holds: the grain of ownership, stamps, norms and checksums.
inline constexpr int64_t kBlockElements = 256;

// Half-open range of blocks of the whole layout (global block index; see core/layout.h).
struct BlockRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  friend bool operator==(const BlockRange& a, const BlockRange& b) {
    return a.begin == b.begin && a.end == b.end;
  }
};

// Element type of a plane, of staging, or of a stored tensor.
enum class DType : uint8_t { kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Bytes of one element.
constexpr int64_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// "fp32", "bf16", "fp16": as on the command line.
std::string Name(DType dtype);

}  // namespace sherd

#endif  // SHERD_CORE_TYPES_H_

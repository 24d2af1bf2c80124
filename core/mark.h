// Marks: how far something has come, as one 64-bit word that only grows.
//
//   Mark m = Mark::Of({Step(7), 0}, 2);     // two parts of step 7, first attempt
//   m < Mark::Of({Step(8), 0}, 0);          // true
//
// A mark stands in shared memory as an atomic word, stored last with release order after what it speaks of.
#ifndef SHERD_CORE_MARK_H_
#define SHERD_CORE_MARK_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/types.h"

namespace sherd {

// A step and how often it was begun again: a rejected step is computed anew with the next attempt.
struct StepId {
  Step step;
  uint8_t attempt = 0;
  friend bool operator==(const StepId& a, const StepId& b) {
    return a.step == b.step && a.attempt == b.attempt;
  }
  friend bool operator!=(const StepId& a, const StepId& b) { return !(a == b); }
  friend bool operator<(const StepId& a, const StepId& b) {
    return a.step != b.step ? a.step < b.step : a.attempt < b.attempt;
  }
  // The step after this one, first attempt; the same step, next attempt.
  StepId NextStep() const { return {step.Next(), 0}; }
  StepId NextAttempt() const { return {step, static_cast<uint8_t>(attempt + 1)}; }
  std::string ToString() const {
    return attempt == 0 ? absl::StrCat(step.value()) : absl::StrCat(step.value(), "#", attempt);
  }
};

class Mark {
 public:
  static constexpr int kPartBits = 16;
  static constexpr int kAttemptBits = 8;
  static constexpr uint64_t kMaxStep = (uint64_t{1} << 40) - 1;
  static constexpr uint32_t kMaxParts = (1u << kPartBits) - 1;

  constexpr Mark() = default;
  constexpr explicit Mark(uint64_t word) : word_(word) {}
  // REQUIRES: id.step <= kMaxStep, parts <= kMaxParts.
  static constexpr Mark Of(StepId id, uint32_t parts = 0) {
    return Mark(id.step.value() << (kAttemptBits + kPartBits) | uint64_t{id.attempt} << kPartBits | parts);
  }
  // The last mark before any of `id`, later than any that was ever stored of the steps and attempts before.
  // REQUIRES: id.step >= 1.
  static constexpr Mark JustBefore(StepId id) { return Mark(Of(id).word_ - 1); }
  constexpr uint64_t word() const { return word_; }
  constexpr uint32_t parts() const { return word_ & kMaxParts; }
  constexpr StepId id() const {
    return {Step(word_ >> (kAttemptBits + kPartBits)), static_cast<uint8_t>(word_ >> kPartBits)};
  }
  // Parts of `id` that this mark speaks for: 0 if it is of another step or attempt.
  constexpr uint32_t PartsOf(StepId id) const {
    return Of(id).word_ == (word_ & ~uint64_t{kMaxParts}) ? parts() : 0;
  }
  friend constexpr bool operator<(Mark a, Mark b) { return a.word_ < b.word_; }
  friend constexpr bool operator<=(Mark a, Mark b) { return a.word_ <= b.word_; }
  friend constexpr bool operator>=(Mark a, Mark b) { return a.word_ >= b.word_; }
  friend constexpr bool operator==(Mark a, Mark b) { return a.word_ == b.word_; }

 private:
  uint64_t word_ = 0;
};

}  // namespace sherd

#endif  // SHERD_CORE_MARK_H_

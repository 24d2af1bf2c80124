// The loss scale of mixed precision (Micikevicius et al., 2018): the loss is multiplied by it before
// backward, so that small gradients survive 16 bits, and gradients are divided by it before the update.
//
//   LossScale now = FirstLossScale(spec);
//   ... a step's backward uses now.scale; all ranks agree that its gradients are finite, or not ...
//   now = NextLossScale(spec, now, overflow);               // what the next step uses
//
// A pure state machine. The state before a step rides in every rank's STEP record and the one after it in the
// verdict, so that all owners, their successors and restarted trainers have the same (core/verdict.h). It
// runs in every job: with a static scale only `i` and `skipped` move.
#ifndef SHERD_CORE_LOSS_SCALE_H_
#define SHERD_CORE_LOSS_SCALE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace sherd {

// How the scale behaves. Names and defaults of DeepSpeed's fp16 section.
struct LossScaleSpec {
  bool dynamic = false;     // false: `initial` for ever; the other fields mean nothing
  double initial = 1;       // finite, > 0
  uint64_t window = 1000;   // clean steps after which the scale doubles, >= 1
  uint32_t hysteresis = 2;  // overflows until the scale halves, >= 1; afterwards each one halves it
  double min = 1;           // the scale never falls below it, > 0, <= initial
  friend bool operator==(const LossScaleSpec& a, const LossScaleSpec& b) {
    return a.dynamic == b.dynamic && a.initial == b.initial && a.window == b.window &&
           a.hysteresis == b.hysteresis && a.min == b.min;
  }
  friend bool operator!=(const LossScaleSpec& a, const LossScaleSpec& b) { return !(a == b); }
};

// Scale 2^16 to begin with, as for fp16.
inline LossScaleSpec DynamicLossScale() {
  LossScaleSpec spec;
  spec.dynamic = true;
  spec.initial = 65536;
  return spec;
}

// INVALID_ARGUMENT naming the field and its value.
absl::Status Validate(const LossScaleSpec& spec);

// "65536 dynamic, window 1000, hysteresis 2, floor 1" or "128 static".
std::string Describe(const LossScaleSpec& spec);

// Before a step. Plain data: it stands in shared memory.
struct LossScale {
  double scale = 1;      // of this step
  int64_t last = -1;     // the newest iteration that overflowed
  int64_t i = 0;         // iterations before this step, overflows included
  uint64_t skipped = 0;  // of them, those that overflowed
  uint32_t credit = 1;   // overflows until the scale halves
  uint32_t floor = 0;    // 1: overflowed at the smallest scale; training cannot go on
  friend bool operator==(const LossScale& a, const LossScale& b) {
    return a.scale == b.scale && a.last == b.last && a.i == b.i && a.skipped == b.skipped &&
           a.credit == b.credit && a.floor == b.floor;
  }
  friend bool operator!=(const LossScale& a, const LossScale& b) { return !(a == b); }
};

LossScale FirstLossScale(const LossScaleSpec& spec);

// After a step whose gradients were finite everywhere (`overflow` false) or were not.
//   overflow: if credit is 1, scale = max(scale / 2, min), at min already: `floor`; else credit -= 1.
//             last = i
//   clean:    k = i - last - 1; if k > 0 and k is a multiple of window: scale *= 2, credit = hysteresis
//   i += 1
// REQUIRES: Validate(spec).
LossScale NextLossScale(const LossScaleSpec& spec, LossScale now, bool overflow);

// What to tell when `floor` is set, with the step (counted from 1) that overflowed last.
std::string FloorMessage(const LossScale& now);

}  // namespace sherd

#endif  // SHERD_CORE_LOSS_SCALE_H_

#include "core/loss_scale.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace sherd {

absl::Status Validate(const LossScaleSpec& spec) {
  const auto bad = [](absl::string_view field, double value, absl::string_view rule) {
    return absl::InvalidArgumentError(absl::StrCat("loss_scale.", field, "=", value, " is not ", rule));
  };
  if (!(std::isfinite(spec.initial) && spec.initial > 0)) {
    return bad("initial", spec.initial, "above 0 and finite");
  }
  if (!spec.dynamic) return absl::OkStatus();
  if (spec.window < 1 || spec.window > uint64_t{1} << 40) {
    return bad("window", static_cast<double>(spec.window), "1 or more steps");
  }
  if (spec.hysteresis < 1) return bad("hysteresis", spec.hysteresis, "1 or more overflows");
  if (!(spec.min > 0 && spec.min <= spec.initial)) {
    return bad("min", spec.min, absl::StrCat("above 0 and at most loss_scale.initial, ", spec.initial));
  }
  return absl::OkStatus();
}

std::string Describe(const LossScaleSpec& spec) {
  if (!spec.dynamic) return absl::StrCat(spec.initial, " static");
  return absl::StrCat(spec.initial, " dynamic, window ", spec.window, ", hysteresis ", spec.hysteresis,
                      ", floor ", spec.min);
}

LossScale FirstLossScale(const LossScaleSpec& spec) {
  LossScale now;
  now.scale = spec.initial;
  if (spec.dynamic) now.credit = spec.hysteresis;
  return now;
}

LossScale NextLossScale(const LossScaleSpec& spec, LossScale now, bool overflow) {
  if (overflow) {
    if (!spec.dynamic) {
      // A scale that a person has set stays.
    } else if (now.credit > 1) {
      --now.credit;
    } else if (now.scale <= spec.min) {
      now.floor = 1;
    } else {
      now.scale = std::max(now.scale / 2, spec.min);
    }
    now.last = now.i;
    ++now.skipped;
  } else if (spec.dynamic) {
    const int64_t clean = now.i - now.last - 1;
    if (clean > 0 && clean % static_cast<int64_t>(spec.window) == 0) {
      now.scale *= 2;
      now.credit = spec.hysteresis;
    }
  }
  ++now.i;
  return now;
}

std::string FloorMessage(const LossScale& now) {
  return absl::StrCat("step ", now.last + 1, " overflowed at the smallest loss scale, ", now.scale,
                      ", after ", now.skipped,
                      " skipped steps in all: gradients are not finite whatever the scale; lower the "
                      "learning rate, look for a NaN in the data or model, or train in bf16");
}

}  // namespace sherd

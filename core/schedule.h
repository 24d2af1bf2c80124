// Learning rate schedules: pure functions of the number of updates made. A step that was skipped made none,
// so it advances nothing, and a trainer that comes back goes on where the job stands.
//
//   ScheduleSpec spec;  spec.name = "WarmupDecayLR";
//   spec.numbers = {{"total_num_steps", 1000}, {"warmup_num_steps", 100}, {"warmup_max_lr", 3e-4}};
//   absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
//   double lr = schedule->Rate(updates, 1e-4);      // of a group with lr 1e-4, for the next update
//
// Plain values; thread-safe to read.
//
// With n = updates made, so that n = 0 at the first one:
//
//   constant  lr                              ) of each group's own lr, after a linear rise from 0 over
//   linear    falls to min_lr_ratio * lr      ) warmup_num_steps updates: as transformers' schedules of
//   cosine    half a cosine to the same       ) these names, which end at total_num_steps
//   WarmupLR, WarmupDecayLR, WarmupCosineLR
//             as DeepSpeed 0.19 has them, defaults included; i = n - 1 is its last_batch_iteration. At the
//             first update the rate is warmup_min_lr (WarmupCosineLR: 0); then, while i < warmup_num_steps,
//             it rises by log(i + 1) / log(warmup_num_steps) or i / warmup_num_steps (warmup_type); then it
//             stays, or falls linearly to 0, or by half a cosine to cos_min_ratio * lr, at total_num_steps.
//
// DeepSpeed's warmup_min_lr and warmup_max_lr are rates and replace those of all groups; warmup_max_lr unset
// is each group's own (WarmupDecayLR: 0.001). Ratios multiply each group's own.
#ifndef SHERD_CORE_SCHEDULE_H_
#define SHERD_CORE_SCHEDULE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "core/step_records.h"

namespace sherd {

// A schedule as a person or a configuration file writes it down.
struct ScheduleSpec {
  std::string name;                       // one of ScheduleNames()
  std::map<std::string, double> numbers;  // by DeepSpeed's names; those left out have their defaults
  std::string warmup_type;                // "log" or "linear"; empty: log
};

// "constant", "linear", "cosine", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR".
std::vector<std::string> ScheduleNames();

class Schedule {
 public:
  // INVALID_ARGUMENT naming the schedule or parameter, its value and what is allowed: an unknown name, a
  // parameter that this schedule does not have, a count that is no whole number or not above 0, a rate or
  // ratio that is negative or not finite, total_num_steps missing where it is needed.
  static absl::StatusOr<Schedule> Create(const ScheduleSpec& spec);

  // The rate of a group for the update after `updates` have been made. `base`: the group's own rate.
  // Logarithm and cosine are the C library's: equal on every trainer of one host.
  double Rate(uint64_t updates, double base) const;

  // The same for each group's kLr.
  void SetRates(uint64_t updates, std::vector<GroupScalars>* groups) const {
    for (GroupScalars& g : *groups) g[kLr] = Rate(updates, g[kLr]);
  }

  const std::string& name() const { return name_; }

 private:
  enum class Kind { kConstant, kLinear, kCosine, kWarmup, kWarmupDecay, kWarmupCosine };
  Schedule() = default;
  double OwnRatio(double n) const;     // of constant, linear, cosine
  double WarmupGamma(double i) const;  // DeepSpeed's, while i < warmup_
  double RateGamma(double i) const;    // of WarmupLR, WarmupDecayLR
  double CosineRatio(double i) const;  // of WarmupCosineLR

  std::string name_;
  Kind kind_ = Kind::kConstant;
  bool log_ = true;
  double warmup_ = 0, total_ = 0, min_ratio_ = 0, warmup_min_ratio_ = 0, min_lr_ = 0;
  absl::optional<double> max_lr_;
};

}  // namespace sherd

#endif  // SHERD_CORE_SCHEDULE_H_

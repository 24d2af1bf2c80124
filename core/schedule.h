// Schedules of the learning rate, and of momentum: pure functions of the number of updates made. A step that
// was skipped made none, so it advances nothing, and a trainer that comes back goes on where the job stands.
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
//   OneCycle  as DeepSpeed 0.19 has it: from cycle_min_lr up to cycle_max_lr in cycle_first_step_size
//             updates and back in cycle_second_step_size, in so many stairs if stair counts say so; then
//             cycle_min_lr / (1 + decay_lr_rate * n' / decay_step_size), n' updates after the cycle. With
//             cycle_momentum the first beta goes the other way, from cycle_max_mom to cycle_min_mom and back,
//             then up by decay_mom_rate; the second is 0.99. At the very first update it is cycle_min_mom.
//   LRRangeTest  lr_range_test_min_lr * (1 + lr_range_test_step_rate * n / lr_range_test_step_size), the
//             quotient rounded down with lr_range_test_staircase
//
// warmup_min_lr, warmup_max_lr and the rates of the last two replace those of all groups; warmup_max_lr unset
// is each group's own (WarmupDecayLR: 0.001). Ratios multiply each group's own.
#ifndef SHERD_CORE_SCHEDULE_H_
#define SHERD_CORE_SCHEDULE_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "core/step_records.h"
#include "kernels/optimizer_kinds.h"

namespace sherd {

// A schedule as a person or a configuration file writes it down.
struct ScheduleSpec {
  std::string name;                       // one of ScheduleNames()
  std::map<std::string, double> numbers;  // by DeepSpeed's names; those left out have their defaults.
                                          // What is true or false there is 1 or 0
  std::string warmup_type;                // "log" or "linear"; empty: log
};

// "constant", "linear", "cosine", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest".
std::vector<std::string> ScheduleNames();

// Whether momentum may be cycled: the optimizer has betas, as DeepSpeed asks its class. Not so of Muon.
bool HasBetas(kernels::OptimizerKind kind);

class Schedule {
 public:
  // INVALID_ARGUMENT naming the schedule or parameter, its value and what is allowed: an unknown name, a
  // parameter that this schedule does not have, a count that is no whole number or too small, a rate or ratio
  // that is negative or not finite, a momentum outside 0..1, one that is needed and missing.
  static absl::StatusOr<Schedule> Create(const ScheduleSpec& spec);

  // The rate of a group for the update after `updates` have been made. `base`: the group's own rate.
  // Logarithm and cosine are the C library's: equal on every trainer of one host.
  double Rate(uint64_t updates, double base) const;

  // Both betas of every group for that update; nullopt: the schedule leaves them alone, or `kind` has none.
  // decay_mom_rate lets the first reach 1, as in DeepSpeed; owners reject a step with it.
  absl::optional<std::pair<double, double>> Betas(uint64_t updates, kernels::OptimizerKind kind) const;

  // Puts both into the groups of an optimizer of this kind.
  void SetScalars(uint64_t updates, kernels::OptimizerKind kind, std::vector<GroupScalars>* groups) const;

  const std::string& name() const { return name_; }

 private:
  enum class Kind {
    kConstant,
    kLinear,
    kCosine,
    kWarmup,
    kWarmupDecay,
    kWarmupCosine,
    kOneCycle,
    kRangeTest
  };
  struct Cycle {
    double first = 0, second = 0;  // updates up, and down
    double first_stairs = 0, second_stairs = 0;
    double min_lr = 0, max_lr = 0, min_mom = 0, max_mom = 0;
    double decay_step = 0, decay_lr = 0, decay_mom = 0;
    bool momentum = false;
  };
  Schedule() = default;
  double OwnRatio(double n) const;     // of constant, linear, cosine
  double WarmupGamma(double i) const;  // DeepSpeed's, while i < warmup_
  double RateGamma(double i) const;    // of WarmupLR, WarmupDecayLR
  double CosineRatio(double i) const;  // of WarmupCosineLR
  double CycleScale(double n) const;   // 0..1 within the cycle
  double CycleRate(double n) const;
  double CycleMomentum(double n) const;
  double RangeRate(double n) const;

  std::string name_;
  Kind kind_ = Kind::kConstant;
  bool log_ = true;
  double warmup_ = 0, total_ = 0, min_ratio_ = 0, warmup_min_ratio_ = 0, min_lr_ = 0;
  absl::optional<double> max_lr_;
  Cycle cycle_;
  double range_step_ = 0, range_rate_ = 0;  // of LRRangeTest, beside min_lr_
  bool range_stairs_ = false;
};

}  // namespace sherd

#endif  // SHERD_CORE_SCHEDULE_H_

#include "client/examples/optimizer_choice.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "client/examples/gpt_config.h"

namespace sherd::examples {

std::vector<std::string> OptimizerNames() {
  std::vector<std::string> names;
  for (const kernels::OptimizerInfo& info : kernels::kOptimizers) names.push_back(info.name);
  return names;
}

double DefaultRate(const std::string& optimizer, const std::string& size) {
  const OptimizerKind kind = kernels::FindOptimizer(optimizer)->kind;
  if (kind == OptimizerKind::kAdam || kind == OptimizerKind::kAdamW) return DefaultLearningRate(size);
  return DefaultScalars(kind)[kLr];
}

OptimizerOptions ChooseOptimizer(const OptimizerChoice& choice, double weight_decay, bool matrices) {
  if (choice.own_optimizer.has_value()) {
    OptimizerOptions own =
        !matrices && choice.own_others.has_value() ? *choice.own_others : *choice.own_optimizer;
    own.Set(kWeightDecay, weight_decay);
    return own;
  }
  OptimizerOptions chosen(kernels::FindOptimizer(choice.optimizer)->kind);
  chosen.Set(kLr, choice.lr);
  chosen.Set(kWeightDecay, weight_decay);
  if (chosen.kind() == OptimizerKind::kAdam || chosen.kind() == OptimizerKind::kAdamW) {
    chosen.Set(kBeta2, 0.95);
  }
  // As Muon's authors: embeddings, norms and biases are AdamW's.
  if (chosen.kind() == OptimizerKind::kMuon && !matrices) chosen.Set(kNsSteps, 0);
  if (chosen.kind() == OptimizerKind::kSgd) chosen.Set(kMomentum, 0.9);
  return chosen;
}

namespace {

// Of the schedules that begin with one, `most` updates in all.
void AddWarmup(const OptimizerChoice& choice, double most, ScheduleSpec* spec) {
  const bool deepspeed = absl::StartsWith(choice.schedule, "Warmup");
  const double warmup = choice.warmup < 0 ? std::floor(most / 10) : static_cast<double>(choice.warmup);
  spec->numbers["warmup_num_steps"] = std::max(warmup, deepspeed ? 1.0 : 0.0);
  if (choice.schedule != "constant" && choice.schedule != "WarmupLR") {
    spec->numbers["total_num_steps"] = most;
  }
  // DeepSpeed's two rise to a rate of their own.
  if (choice.schedule == "WarmupLR" || choice.schedule == "WarmupDecayLR") {
    spec->numbers["warmup_max_lr"] = choice.lr;
  }
}

}  // namespace

absl::StatusOr<std::optional<Schedule>> ChooseSchedule(const OptimizerChoice& choice, uint64_t steps) {
  if (choice.own_schedule.has_value()) {
    absl::StatusOr<Schedule> own = Schedule::Create(*choice.own_schedule);
    if (!own.ok()) return own.status();
    return std::optional<Schedule>(*std::move(own));
  }
  if (choice.schedule.empty()) return std::optional<Schedule>();
  ScheduleSpec spec;
  spec.name = choice.schedule;
  spec.warmup_type = choice.warmup_type;
  const double most = static_cast<double>(std::max<uint64_t>(steps, 1));
  if (choice.schedule == "OneCycle") {
    const double up = std::max(1.0, std::floor(most / 2));
    spec.numbers = {{"cycle_min_lr", choice.lr / 10},
                    {"cycle_max_lr", choice.lr},
                    {"cycle_first_step_size", up},
                    {"cycle_second_step_size", most - up}};
  } else if (choice.schedule == "LRRangeTest") {
    spec.numbers = {{"lr_range_test_min_lr", choice.lr},
                    {"lr_range_test_step_size", std::max(1.0, std::floor(most / 10))}};
  } else {
    AddWarmup(choice, most, &spec);
  }
  absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
  if (!schedule.ok()) return schedule.status();
  return std::optional<Schedule>(*std::move(schedule));
}

}  // namespace sherd::examples

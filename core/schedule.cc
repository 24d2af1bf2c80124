#include "core/schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sherd {
namespace {

constexpr double kPi = 3.14159265358979323846;

// What a schedule is called and which numbers it takes.
struct Form {
  const char* name;
  std::vector<std::string> numbers;
  bool deepspeed;  // has a warmup_type, and at least one update of warm-up
  bool needs_total;
};

const std::vector<Form>& Forms() {
  static const auto* const kForms = new std::vector<Form>{
      {"constant", {"warmup_num_steps"}, false, false},
      {"linear", {"total_num_steps", "warmup_num_steps", "min_lr_ratio"}, false, true},
      {"cosine", {"total_num_steps", "warmup_num_steps", "min_lr_ratio"}, false, true},
      {"WarmupLR", {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}, true, false},
      {"WarmupDecayLR",
       {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"},
       true,
       true},
      {"WarmupCosineLR",
       {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio"},
       true,
       true},
  };
  return *kForms;
}

absl::Status CheckNumber(const std::string& name, double value, bool deepspeed) {
  const bool count = name == "total_num_steps" || name == "warmup_num_steps";
  if (!count) {
    if (std::isfinite(value) && value >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, ": it must be finite and at least 0"));
  }
  // Up to here doubles are whole numbers without gaps.
  const double low = name == "warmup_num_steps" && !deepspeed ? 0 : 1, high = 9007199254740992.0;
  if (value >= low && value <= high && value == std::floor(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ": it must be a whole number of updates, at least ", low));
}

absl::Status Check(const ScheduleSpec& spec, const Form& form) {
  for (const auto& [name, value] : spec.numbers) {
    if (std::find(form.numbers.begin(), form.numbers.end(), name) == form.numbers.end()) {
      return absl::InvalidArgumentError(absl::StrCat("schedule ", spec.name, " has no parameter ", name,
                                                     "; it has ", absl::StrJoin(form.numbers, ", "),
                                                     form.deepspeed ? ", warmup_type" : ""));
    }
    if (absl::Status s = CheckNumber(name, value, form.deepspeed); !s.ok()) return s;
  }
  if (form.needs_total && spec.numbers.count("total_num_steps") == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule ", spec.name, " needs total_num_steps, the updates of the whole training"));
  }
  if (spec.warmup_type.empty()) return absl::OkStatus();
  if (!form.deepspeed) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule ", spec.name, " has no warmup_type: its warm-up is linear"));
  }
  if (spec.warmup_type == "log" || spec.warmup_type == "linear") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("warmup_type is \"", spec.warmup_type, "\": it must be log or linear"));
}

}  // namespace

std::vector<std::string> ScheduleNames() {
  std::vector<std::string> names;
  for (const Form& form : Forms()) names.push_back(form.name);
  return names;
}

absl::StatusOr<Schedule> Schedule::Create(const ScheduleSpec& spec) {
  const std::vector<Form>& forms = Forms();
  const auto form =
      std::find_if(forms.begin(), forms.end(), [&](const Form& f) { return spec.name == f.name; });
  if (form == forms.end()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no schedule \"", spec.name, "\"; there are ",
                                                   absl::StrJoin(ScheduleNames(), ", ")));
  }
  if (absl::Status s = Check(spec, *form); !s.ok()) return s;
  const auto number = [&](const char* name, double otherwise) {
    const auto found = spec.numbers.find(name);
    return found == spec.numbers.end() ? otherwise : found->second;
  };
  Schedule s;
  s.name_ = spec.name;
  s.kind_ = static_cast<Kind>(form - forms.begin());
  s.log_ = spec.warmup_type != "linear";
  s.warmup_ = number("warmup_num_steps", form->deepspeed ? 1000 : 0);
  // As DeepSpeed: the logarithm of 1 would be divided by.
  if (form->deepspeed) s.warmup_ = std::max(2.0, s.warmup_);
  s.total_ = number("total_num_steps", 0);
  s.warmup_min_ratio_ = number("warmup_min_ratio", 0);
  s.min_ratio_ = s.kind_ == Kind::kWarmupCosine ? number("cos_min_ratio", 0.0001) : number("min_lr_ratio", 0);
  s.min_lr_ = number("warmup_min_lr", 0);
  if (spec.numbers.count("warmup_max_lr") != 0) s.max_lr_ = number("warmup_max_lr", 0);
  if (s.kind_ == Kind::kWarmupDecay && !s.max_lr_.has_value()) s.max_lr_ = 0.001;
  return s;
}

double Schedule::OwnRatio(double n) const {
  if (n < warmup_) return n / warmup_;
  if (kind_ == Kind::kConstant) return 1;
  const double progress = std::min(1.0, (n - warmup_) / std::max(1.0, total_ - warmup_));
  const double left = kind_ == Kind::kLinear ? 1 - progress : 0.5 * (1 + std::cos(kPi * progress));
  return min_ratio_ + (1 - min_ratio_) * std::max(0.0, left);
}

double Schedule::WarmupGamma(double i) const {
  return log_ ? 1.0 / std::log(warmup_) * std::log(i + 1) : i / warmup_;
}

double Schedule::RateGamma(double i) const {
  if (i < 0) return 0;
  if (i < warmup_) return WarmupGamma(i);
  if (kind_ == Kind::kWarmup) return 1;
  return std::max(0.0, (total_ - i) / std::max(1.0, total_ - warmup_));
}

double Schedule::CosineRatio(double i) const {
  if (i < 0) return 0;
  if (i < warmup_) return warmup_min_ratio_ + WarmupGamma(i) * (1 - warmup_min_ratio_);
  const double progress = std::min(1.0, (i - warmup_ + 1) / std::max(1.0, total_ - warmup_));
  return std::max(0.0, min_ratio_ + (1 - min_ratio_) * ((1 + std::cos(kPi * progress)) / 2));
}

double Schedule::Rate(uint64_t updates, double base) const {
  const double n = static_cast<double>(updates);
  switch (kind_) {
    case Kind::kConstant:
    case Kind::kLinear:
    case Kind::kCosine:
      return base * OwnRatio(n);
    case Kind::kWarmup:
    case Kind::kWarmupDecay:
      return min_lr_ + (max_lr_.value_or(base) - min_lr_) * RateGamma(n - 1);
    case Kind::kWarmupCosine:
      return base * CosineRatio(n - 1);
  }
  return base;
}

}  // namespace sherd

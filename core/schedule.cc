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
  bool warmup_type;  // has one, and at least one update of warm-up
  std::vector<std::string> needed;
};

const std::vector<Form>& Forms() {
  static const auto* const kForms = new std::vector<Form>{
      {"constant", {"warmup_num_steps"}, false, {}},
      {"linear", {"total_num_steps", "warmup_num_steps", "min_lr_ratio"}, false, {"total_num_steps"}},
      {"cosine", {"total_num_steps", "warmup_num_steps", "min_lr_ratio"}, false, {"total_num_steps"}},
      {"WarmupLR", {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}, true, {}},
      {"WarmupDecayLR",
       {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"},
       true,
       {"total_num_steps"}},
      {"WarmupCosineLR",
       {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio"},
       true,
       {"total_num_steps"}},
      {"OneCycle",
       {"cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size",
        "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum",
        "cycle_min_mom", "cycle_max_mom", "decay_mom_rate"},
       false,
       {"cycle_min_lr", "cycle_max_lr"}},
      {"LRRangeTest",
       {"lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate",
        "lr_range_test_staircase"},
       false,
       {}},
  };
  return *kForms;
}

// The least value of a number that counts; nullopt: it counts nothing.
absl::optional<double> LeastCount(const std::string& name, bool warmup_type) {
  if (name == "warmup_num_steps") return warmup_type ? 1 : 0;
  if (name == "total_num_steps" || name == "cycle_first_step_size" || name == "lr_range_test_step_size") {
    return 1;
  }
  if (name == "cycle_second_step_size" || name == "decay_step_size") return 0;
  // -1 is how DeepSpeed's own flags say "none".
  if (name == "cycle_first_stair_count" || name == "cycle_second_stair_count") return -1;
  return absl::nullopt;
}

absl::Status CheckNumber(const std::string& name, double value, bool warmup_type) {
  if (name == "cycle_momentum" || name == "lr_range_test_staircase") {
    if (value == 0 || value == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ": it must be 0 or 1"));
  }
  if (name == "cycle_min_mom" || name == "cycle_max_mom") {
    if (value >= 0 && value < 1) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, ": it must be at least 0 and below 1"));
  }
  const absl::optional<double> low = LeastCount(name, warmup_type);
  if (!low.has_value()) {
    if (std::isfinite(value) && value >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, ": it must be finite and at least 0"));
  }
  // Up to here doubles are whole numbers without gaps.
  const double high = 9007199254740992.0;
  if (value >= *low && value <= high && value == std::floor(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ": it must be a whole number of ",
                                                 *low < 0 ? "stairs" : "updates", ", at least ", *low));
}

absl::Status Check(const ScheduleSpec& spec, const Form& form) {
  for (const auto& [name, value] : spec.numbers) {
    if (std::find(form.numbers.begin(), form.numbers.end(), name) == form.numbers.end()) {
      return absl::InvalidArgumentError(absl::StrCat("schedule ", spec.name, " has no parameter ", name,
                                                     "; it has ", absl::StrJoin(form.numbers, ", "),
                                                     form.warmup_type ? ", warmup_type" : ""));
    }
    if (absl::Status s = CheckNumber(name, value, form.warmup_type); !s.ok()) return s;
  }
  for (const std::string& name : form.needed) {
    if (spec.numbers.count(name) != 0) continue;
    const absl::string_view what = name == "total_num_steps" ? "the updates of the whole training"
                                   : name == "cycle_min_lr"  ? "the rate to begin and end the cycle with"
                                                             : "the rate in the middle of the cycle";
    return absl::InvalidArgumentError(absl::StrCat("schedule ", spec.name, " needs ", name, ", ", what));
  }
  if (spec.warmup_type.empty()) return absl::OkStatus();
  if (!form.warmup_type) {
    return absl::InvalidArgumentError(absl::StrCat(
        "schedule ", spec.name, " has no warmup_type; WarmupLR, WarmupDecayLR and WarmupCosineLR have one"));
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

bool HasBetas(kernels::OptimizerKind kind) {
  using Kind = kernels::OptimizerKind;
  switch (kind) {
    case Kind::kAdam:
    case Kind::kAdamW:
    case Kind::kLion:
    case Kind::kLamb:
      return true;
    case Kind::kSgd:
    case Kind::kAdagrad:
    case Kind::kMuon:
      return false;
  }
  return false;
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
  s.warmup_ = number("warmup_num_steps", form->warmup_type ? 1000 : 0);
  // As DeepSpeed: the logarithm of 1 would be divided by.
  if (form->warmup_type) s.warmup_ = std::max(2.0, s.warmup_);
  s.total_ = number("total_num_steps", 0);
  s.warmup_min_ratio_ = number("warmup_min_ratio", 0);
  s.min_ratio_ = s.kind_ == Kind::kWarmupCosine ? number("cos_min_ratio", 0.0001) : number("min_lr_ratio", 0);
  s.min_lr_ = number("warmup_min_lr", 0);
  if (spec.numbers.count("warmup_max_lr") != 0) s.max_lr_ = number("warmup_max_lr", 0);
  if (s.kind_ == Kind::kWarmupDecay && !s.max_lr_.has_value()) s.max_lr_ = 0.001;
  if (s.kind_ == Kind::kRangeTest) s.min_lr_ = number("lr_range_test_min_lr", 0.001);
  s.range_step_ = number("lr_range_test_step_size", 2000);
  s.range_rate_ = number("lr_range_test_step_rate", 1);
  s.range_stairs_ = number("lr_range_test_staircase", 0) != 0;
  Cycle& c = s.cycle_;
  c.first = number("cycle_first_step_size", 2000);
  c.second = number("cycle_second_step_size", c.first);
  c.first_stairs = number("cycle_first_stair_count", 0);
  c.second_stairs = number("cycle_second_stair_count", c.first_stairs);
  c.min_lr = number("cycle_min_lr", 0);
  c.max_lr = number("cycle_max_lr", 0);
  c.min_mom = number("cycle_min_mom", 0.8);
  c.max_mom = number("cycle_max_mom", 0.9);
  c.decay_step = number("decay_step_size", 0);
  c.decay_lr = number("decay_lr_rate", 0);
  c.decay_mom = number("decay_mom_rate", 0);
  c.momentum = s.kind_ == Kind::kOneCycle && number("cycle_momentum", 1) != 0;
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

// The operations in the order of DeepSpeed's, so that stairs end at the same updates.
double Schedule::CycleScale(double n) const {
  const double total = cycle_.first + cycle_.second, ratio = cycle_.first / total;
  const double x = 1.0 + n / total - std::floor(1.0 + n / total);
  const bool up = x <= ratio;
  const double stairs = up ? cycle_.first_stairs : cycle_.second_stairs;
  if (stairs <= 0) return up ? x / ratio : (x - 1) / (ratio - 1);
  const double i = std::fmod(n, total);
  const double at = i <= cycle_.first ? i * stairs / cycle_.first : (total - i) * stairs / cycle_.second;
  return std::floor(at) / stairs;
}

double Schedule::CycleRate(double n) const {
  const double after = n - (cycle_.first + cycle_.second);
  if (after <= 0) return cycle_.min_lr + (cycle_.max_lr - cycle_.min_lr) * CycleScale(n);
  if (cycle_.decay_step == 0 || cycle_.decay_lr == 0) return cycle_.min_lr;
  return cycle_.min_lr / (1 + cycle_.decay_lr * (after / cycle_.decay_step));
}

double Schedule::CycleMomentum(double n) const {
  const double after = n - (cycle_.first + cycle_.second);
  if (n == 0) return cycle_.min_mom;
  if (after <= 0) return cycle_.max_mom - (cycle_.max_mom - cycle_.min_mom) * CycleScale(n);
  if (cycle_.decay_step == 0 || cycle_.decay_mom == 0) return cycle_.max_mom;
  return cycle_.max_mom * (1 + cycle_.decay_mom * (after / cycle_.decay_step));
}

double Schedule::RangeRate(double n) const {
  const double intervals = n / range_step_;
  return min_lr_ * (1 + range_rate_ * (range_stairs_ ? std::floor(intervals) : intervals));
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
    case Kind::kOneCycle:
      return CycleRate(n);
    case Kind::kRangeTest:
      return RangeRate(n);
  }
  return base;
}

absl::optional<std::pair<double, double>> Schedule::Betas(uint64_t updates,
                                                          kernels::OptimizerKind kind) const {
  if (!cycle_.momentum || !HasBetas(kind)) return absl::nullopt;
  return std::make_pair(CycleMomentum(static_cast<double>(updates)), 0.99);
}

void Schedule::SetScalars(uint64_t updates, kernels::OptimizerKind kind,
                          std::vector<GroupScalars>* groups) const {
  const absl::optional<std::pair<double, double>> betas = Betas(updates, kind);
  for (GroupScalars& g : *groups) {
    g[kLr] = Rate(updates, g[kLr]);
    if (betas.has_value()) g[kBeta1] = betas->first, g[kBeta2] = betas->second;
  }
}

}  // namespace sherd

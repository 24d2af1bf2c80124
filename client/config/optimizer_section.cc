#include "client/config/optimizer_section.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/config/key_table.h"
#include "client/optimizer_options.h"
#include "core/schedule.h"

namespace sherd::config {
namespace {

// A kind of optimizer or scheduler and the parameters that it takes.
struct Kind {
  absl::string_view name;
  absl::string_view params;  // separated by spaces; empty: there is none of this kind here
};

constexpr absl::string_view kAdamParams =
    "lr betas eps weight_decay adam_w_mode torch_adam bias_correction amsgrad fp32_optimizer_states "
    "set_grad_none";

constexpr Kind kOptimizers[] = {
    {"Adam", kAdamParams},
    {"AdamW", kAdamParams},
    {"SGD", "lr weight_decay momentum dampening nesterov"},
    {"Adagrad", "lr eps weight_decay lr_decay initial_accumulator_value amsgrad fp32_optimizer_states"},
    {"Lion", "lr betas weight_decay fp32_optimizer_states set_grad_none"},
    {"Lamb",
     "lr betas eps weight_decay max_coeff min_coeff bias_correction eps_inside_sqrt amsgrad max_grad_norm"},
    {"Muon", "lr betas eps weight_decay momentum muon_lr adam_lr ns_method"},
};

constexpr Kind kSchedulers[] = {
    {"WarmupLR", "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration"},
    {"WarmupDecayLR",
     "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type total_num_steps last_batch_iteration"},
    {"WarmupCosineLR",
     "warmup_min_ratio warmup_num_steps warmup_type cos_min_ratio total_num_steps last_batch_iteration"},
    {"OneCycle",
     "cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size "
     "cycle_first_stair_count cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom "
     "cycle_max_mom decay_mom_rate last_batch_iteration"},
    {"LRRangeTest",
     "lr_range_test_min_lr lr_range_test_step_size lr_range_test_step_rate lr_range_test_staircase "
     "last_batch_iteration"},
};

// The kind that `section` names, nullptr after an error. Parameters that it does not have are errors, unless
// one that nobody has (key_table refuses those).
template <size_t N>
const Kind* FindKind(ValueSource& from, const std::string& section, const Kind (&kinds)[N]) {
  const std::string type_key = absl::StrCat(section, ".type"), params_key = absl::StrCat(section, ".params");
  if (!from.IsSet(type_key)) {
    if (from.At(params_key) != nullptr && !from.At(params_key)->members.empty()) {
      from.Fail(absl::StrCat(params_key, " is there without ", type_key, ": name it"));
    }
    return nullptr;
  }
  const std::string type = *from.Text(type_key);
  const auto name = [](std::string* out, const Kind& k) { absl::StrAppend(out, k.name); };
  const Kind* kind = std::find_if(std::begin(kinds), std::end(kinds),
                                  [&](const Kind& k) { return absl::EqualsIgnoreCase(k.name, type); });
  if (kind == std::end(kinds)) {
    from.Fail(absl::StrCat(type_key, " is \"", type, "\", which is not there: use one of ",
                           absl::StrJoin(kinds, ", ", name)));
    return nullptr;
  }
  const std::vector<absl::string_view> has = absl::StrSplit(kind->params, ' ');
  if (const JsonValue* params = from.At(params_key); params != nullptr) {
    for (const auto& [key, value] : params->members) {
      if (std::find(has.begin(), has.end(), key) != has.end()) continue;
      from.Fail(absl::StrCat(params_key, ".", key, " is ", value.Show(), ", but ", kind->name,
                             " has no such parameter: remove it; it has ", absl::StrJoin(has, ", ")));
      return nullptr;
    }
  }
  return kind;
}

std::string Param(absl::string_view name) { return absl::StrCat("optimizer.params.", name); }

// DeepSpeed's defaults, which are not Sherd's own in all cases; those of the table but for Adagrad and Muon.
GroupScalars FileDefaults(OptimizerKind kind) {
  GroupScalars s = DefaultScalars(kind);
  s[kWeightDecay] = 0;
  if (kind == OptimizerKind::kLion) s[kLr] = 1e-3, s[kBeta2] = 0.999;
  if (kind == OptimizerKind::kMuon) s[kLr] = 0.02, s[kBeta2] = 0.95;
  return s;
}

// What the file has for this kind, over what the program says, over DeepSpeed's defaults.
OptimizerOptions FromFile(ValueSource& from, const ProgramValues& program, OptimizerKind kind,
                          absl::string_view params) {
  OptimizerOptions options(kind, FileDefaults(kind));
  const auto number = [&](absl::string_view name, ScalarField field, const ProgramValue<double>& mine) {
    const std::string path = Param(name);
    const bool said = from.At(path) != nullptr || !mine.flag.empty();
    if (!said || !from.status().ok()) return;
    if (!from.IsSet(path) && !mine.value.has_value()) return;  // "auto", and nobody fills it
    if (const absl::optional<double> v = from.Number(path, mine); v.has_value()) options.Set(field, *v);
  };
  for (absl::string_view name : absl::StrSplit(params, ' ')) {
    if (name == "lr") number(name, kLr, program.lr);
    if (name == "weight_decay") number(name, kWeightDecay, program.weight_decay);
    if (name == "eps") number(name, kEps, program.eps);
    if (name == "momentum") number(name, kMomentum, {});
    if (name == "dampening") number(name, kDampening, {});
    if (name == "lr_decay") number(name, kLrDecay, {});
    if (name == "initial_accumulator_value") number(name, kInitialAccumulatorValue, {});
    if (name == "min_coeff") number(name, kMinCoeff, {});
    if (name == "max_coeff") number(name, kMaxCoeff, {});
    if (name == "muon_lr") number(name, kLr, {});  // after lr, which it replaces
    if (name == "nesterov") options.Set(kNesterov, *from.Bool(Param(name)) ? 1 : 0);
    if (name == "betas" && (from.At(Param(name)) != nullptr || !program.betas.flag.empty())) {
      const auto betas = from.Pair(Param(name), program.betas);
      if (betas.has_value()) options.Set(kBeta1, betas->first), options.Set(kBeta2, betas->second);
    }
  }
  return options;
}

// The program's own, as far as it said.
OptimizerOptions OwnOptimizer(const ProgramValues& program) {
  AdamWOptions options;
  if (program.lr.value.has_value()) options.lr(*program.lr.value);
  if (program.weight_decay.value.has_value()) options.weight_decay(*program.weight_decay.value);
  if (program.eps.value.has_value()) options.eps(*program.eps.value);
  if (program.betas.value.has_value()) options.betas(program.betas.value->first, program.betas.value->second);
  return options;
}

// What Muon does to parameters that are no hidden matrices: AdamW, with a rate of its own.
OptimizerOptions OthersOfMuon(ValueSource& from, const OptimizerOptions& muon) {
  OptimizerOptions others = muon;
  others.Set(kNsSteps, 0);
  const auto rate = [&](absl::string_view name, double otherwise) {
    return from.IsSet(Param(name)) ? *from.Number(Param(name)) : otherwise;
  };
  const bool lr_said = from.At(Param("lr")) != nullptr;
  others.Set(kLr, rate("adam_lr", lr_said ? rate("lr", muon.scalars()[kLr]) : 3e-4));
  if (from.At(Param("eps")) == nullptr) others.Set(kEps, 1e-10);
  return others;
}

// What the file has for this kind of schedule; where it is silent, nothing: the schedule's own defaults are
// DeepSpeed's.
ScheduleSpec SpecFromFile(ValueSource& from, const ProgramValues& program, const Kind& kind, double lr) {
  ScheduleSpec spec;
  spec.name = std::string(kind.name);
  const auto as_number = [](const ProgramValue<int64_t>& mine) {
    ProgramValue<double> number;
    if (mine.value.has_value()) number.value = static_cast<double>(*mine.value);
    number.flag = mine.flag;
    return number;
  };
  for (absl::string_view name : absl::StrSplit(kind.params, ' ')) {
    const std::string path = absl::StrCat("scheduler.params.", name);
    if (name == "warmup_type") {
      spec.warmup_type = absl::AsciiStrToLower(*from.Text(path));
      continue;
    }
    ProgramValue<double> mine;
    if (name == "warmup_max_lr" || name == "cycle_max_lr") mine.value = lr;
    if (name == "warmup_num_steps") mine = as_number(program.warmup_steps);
    if (name == "total_num_steps") mine = as_number(program.total_steps);
    if (from.At(path) == nullptr && mine.flag.empty()) continue;
    absl::optional<double> value;
    if (FindKey(path)->type == KeyType::kBool) {
      value = *from.Bool(path) ? 1 : 0;
    } else {
      value = from.Number(path, mine);
    }
    if (value.has_value()) spec.numbers[std::string(name)] = *value;
  }
  spec.numbers.erase("last_batch_iteration");
  return spec;
}

OptimizerKind KindOf(ValueSource& from, absl::string_view name) {
  if (name == "Adam") return *from.Bool(Param("adam_w_mode")) ? OptimizerKind::kAdamW : OptimizerKind::kAdam;
  return kernels::FindOptimizer(std::string(absl::AsciiStrToLower(name)))->kind;
}

}  // namespace

void ResolveOptimizer(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  const Kind* kind = FindKind(from, "optimizer", kOptimizers);
  out->has_optimizer = kind != nullptr;
  out->optimizer = kind == nullptr ? OwnOptimizer(program)
                                   : FromFile(from, program, KindOf(from, kind->name), kind->params);
  if (out->has_optimizer && out->optimizer.kind() == OptimizerKind::kMuon) {
    out->others = OthersOfMuon(from, out->optimizer);
  }
}

void ResolveScheduler(ValueSource& from, const ProgramValues& program, bool complete, TrainingConfig* out) {
  const Kind* kind = FindKind(from, "scheduler", kSchedulers);
  if (kind == nullptr) return;
  ScheduleSpec spec = SpecFromFile(from, program, *kind, out->optimizer.scalars()[kLr]);
  const bool waits = !complete && from.At("scheduler.params.total_num_steps") != nullptr;
  if (!from.status().ok() || (waits && spec.numbers.count("total_num_steps") == 0)) return;
  const absl::StatusOr<Schedule> schedule = Schedule::Create(spec);
  if (!schedule.ok()) return from.Fail(absl::StrCat("scheduler.params: ", schedule.status().message()));
  for (const auto& [low, high] :
       {std::make_pair("warmup_min_lr", "warmup_max_lr"), std::make_pair("cycle_min_lr", "cycle_max_lr"),
        std::make_pair("cycle_min_mom", "cycle_max_mom")}) {
    const auto bottom = spec.numbers.find(low), top = spec.numbers.find(high);
    if (top == spec.numbers.end() || bottom == spec.numbers.end() || top->second >= bottom->second) continue;
    // Before the program has spoken, "auto" is anything.
    if (!complete && !from.IsSet(absl::StrCat("scheduler.params.", high))) continue;
    return from.Fail(absl::StrCat("scheduler.params.", high, " is ", top->second, ", below ", low, " ",
                                  bottom->second, ": raise it"));
  }
  // It only grows after the cycle, so that the last update has the largest.
  if (complete && program.total_steps.value.value_or(0) > 0) {
    const uint64_t last = static_cast<uint64_t>(*program.total_steps.value) - 1;
    if (const auto betas = schedule->Betas(last, out->optimizer.kind());
        betas.has_value() && betas->first >= 1) {
      return from.Fail(absl::StrCat("scheduler.params.decay_mom_rate lets the first beta grow to ",
                                    betas->first, " within ", last + 1,
                                    " steps, and it must stay below 1: lower it"));
    }
  }
  out->schedule = std::move(spec);
}

bool CyclesInVain(const TrainingConfig& asked) {
  if (!asked.has_optimizer || !asked.schedule.has_value() || asked.schedule->name != "OneCycle") return false;
  const auto momentum = asked.schedule->numbers.find("cycle_momentum");
  return !HasBetas(asked.optimizer.kind()) &&
         (momentum == asked.schedule->numbers.end() || momentum->second != 0);
}

}  // namespace sherd::config

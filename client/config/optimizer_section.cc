#include "client/config/optimizer_section.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/config/key_table.h"

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
};

constexpr Kind kSchedulers[] = {
    {"WarmupLR", "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration"},
    {"WarmupDecayLR",
     "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type total_num_steps last_batch_iteration"},
    {"WarmupCosineLR",
     "warmup_min_ratio warmup_num_steps warmup_type cos_min_ratio total_num_steps last_batch_iteration"},
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

template <typename Options>
OptimizerOptions AdamLike(ValueSource& from, const ProgramValues& program) {
  Options options;
  options.lr(from.Number(Param("lr"), program.lr).value_or(1e-3));
  options.weight_decay(from.Number(Param("weight_decay"), program.weight_decay).value_or(0));
  options.eps(from.Number(Param("eps"), program.eps).value_or(1e-8));
  const std::pair<double, double> betas =
      from.Pair(Param("betas"), program.betas).value_or(std::make_pair(0.9, 0.999));
  options.betas(betas.first, betas.second);
  return options;
}

OptimizerOptions Sgd(ValueSource& from, const ProgramValues& program) {
  SgdOptions options(from.Number(Param("lr"), program.lr).value_or(1e-3));
  options.weight_decay(from.Number(Param("weight_decay"), program.weight_decay).value_or(0));
  options.momentum(*from.Number(Param("momentum"))).dampening(*from.Number(Param("dampening")));
  options.nesterov(*from.Bool(Param("nesterov")));
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

}  // namespace

void ResolveOptimizer(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  const Kind* kind = FindKind(from, "optimizer", kOptimizers);
  out->has_optimizer = kind != nullptr;
  if (kind == nullptr) {
    out->optimizer = OwnOptimizer(program);
  } else if (kind->name == "SGD") {
    out->optimizer = Sgd(from, program);
  } else if (kind->name == "Adam" && !*from.Bool(Param("adam_w_mode"))) {
    out->optimizer = AdamLike<AdamOptions>(from, program);
  } else {
    out->optimizer = AdamLike<AdamWOptions>(from, program);
  }
}

void ResolveScheduler(ValueSource& from, const ProgramValues& program, bool complete, TrainingConfig* out) {
  const Kind* kind = FindKind(from, "scheduler", kSchedulers);
  if (kind == nullptr) return;
  const auto key = [](absl::string_view name) { return absl::StrCat("scheduler.params.", name); };
  SchedulerConfig& s = out->scheduler;
  s.type = kind->name == "WarmupLR"        ? SchedulerConfig::Type::kWarmup
           : kind->name == "WarmupDecayLR" ? SchedulerConfig::Type::kWarmupDecay
                                           : SchedulerConfig::Type::kWarmupCosine;
  s.warmup_steps = *from.Integer(key("warmup_num_steps"), program.warmup_steps);
  s.linear = absl::EqualsIgnoreCase(*from.Text(key("warmup_type")), "linear");
  const double lr = out->optimizer.scalars()[kLr];
  if (s.type == SchedulerConfig::Type::kWarmupCosine) {
    s.min_ratio = *from.Number(key("warmup_min_ratio"));
    s.cos_min_ratio = *from.Number(key("cos_min_ratio"));
  } else {
    s.min_lr = *from.Number(key("warmup_min_lr"));
    ProgramValue<double> top;
    top.value = lr;
    s.max_lr = *from.Number(key("warmup_max_lr"), top);
    // WarmupLR without it: the optimizer's.
    if (s.type == SchedulerConfig::Type::kWarmup && from.At(key("warmup_max_lr")) == nullptr) s.max_lr = lr;
    if (s.max_lr < s.min_lr && (complete || from.IsSet(key("warmup_max_lr")))) {
      from.Fail(absl::StrCat(key("warmup_max_lr"), " is ", s.max_lr, ", below warmup_min_lr ", s.min_lr,
                             ": raise it"));
    }
  }
  if (s.type == SchedulerConfig::Type::kWarmup) return;
  const absl::optional<int64_t> total = from.Integer(key("total_num_steps"), program.total_steps);
  const bool asks = from.At(key("total_num_steps")) != nullptr;
  if ((complete || !asks) && !total.has_value()) {
    from.Fail(
        absl::StrCat(key("total_num_steps"), asks ? " is \"auto\", and the program does not say how many "
                                                    "steps it makes: write the number"
                                                  : " is missing: " + std::string(kind->name) + " needs it"));
  }
  s.total_steps = total.value_or(0);
}

}  // namespace sherd::config

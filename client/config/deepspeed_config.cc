#include "client/config/deepspeed_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/config/batch_sizes.h"
#include "client/config/elastic_batch.h"
#include "client/config/key_table.h"
#include "client/config/optimizer_section.h"
#include "client/config/value_source.h"
#include "runtime/formats/atomic_file.h"

namespace sherd {
namespace {

using config::JsonValue;
using config::ValueSource;

// More gains nothing: a unit of this size is reduced in a few milliseconds.
constexpr int64_t kMostBucketElements = int64_t{4} << 20;
// More than any job has ranks.
constexpr int64_t kMostShardRanks = 1 << 20;

// Visits every key, in order. `warned`: keys by what Sherd does instead.
class Checker {
 public:
  explicit Checker(const std::string& name) : name_(name) {}

  absl::Status Walk(const std::string& prefix, const JsonValue& object) {
    for (const auto& [key, value] : object.members) {
      const std::string path = prefix.empty() ? key : absl::StrCat(prefix, ".", key);
      const config::KeySpec* spec = key.find('.') == key.npos ? config::FindKey(path) : nullptr;
      if (spec == nullptr) return InFile(config::UnknownKey(path));
      if (absl::Status ok = config::CheckValue(*spec, value); !ok.ok()) return InFile(ok);
      if (absl::Status ok = Judge(*spec, value); !ok.ok()) return ok;
      if (spec->type == config::KeyType::kObject) {
        if (absl::Status ok = Walk(path, value); !ok.ok()) return ok;
      }
    }
    return absl::OkStatus();
  }

  void Warn(absl::string_view path, absl::string_view instead) {
    for (auto& [text, paths] : warned_) {
      if (text == instead) return paths.push_back(std::string(path));
    }
    warned_.push_back({std::string(instead), {std::string(path)}});
  }

  std::vector<std::string> Lines() const {
    std::vector<std::string> lines;
    for (const auto& [text, paths] : warned_) {
      lines.push_back(absl::StrCat(name_, ": ", absl::StrJoin(paths, ", "), ": ", text));
    }
    return lines;
  }

 private:
  absl::Status InFile(const absl::Status& status) const {
    return absl::Status(status.code(), absl::StrCat(name_, ": ", status.message()));
  }
  absl::Status Judge(const config::KeySpec& spec, const JsonValue& value) {
    if (config::IsQuiet(spec, value)) return absl::OkStatus();
    if (spec.effect == config::Effect::kWarned) Warn(spec.path, spec.does);
    if (spec.effect != config::Effect::kRefused) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ": ", spec.path, " is ", value.Show(), ": ", spec.does));
  }

  const std::string& name_;
  std::vector<std::pair<std::string, std::vector<std::string>>> warned_;  // in order of the file
};

config::AskedBatchSizes StatedBatchSizes(ValueSource& from) {
  config::AskedBatchSizes asked;
  asked.train = from.Stated("train_batch_size");
  asked.micro = from.Stated("train_micro_batch_size_per_gpu");
  asked.accumulation = from.Stated("gradient_accumulation_steps");
  return asked;
}

bool IsElastic(ValueSource& from) { return *from.Bool("elasticity.enabled"); }

// The sizes that elasticity comes to; they take the place of the file's own.
void ElasticBatch(ValueSource& from, int world_size, config::AskedBatchSizes* asked) {
  const bool stated = asked->train.has_value() || asked->micro.has_value() || asked->accumulation.has_value();
  if (stated && !*from.Bool("elasticity.ignore_non_elastic_batch_info")) {
    return from.Fail(
        "elasticity.enabled is true, and so it is elasticity that chooses the batch: remove "
        "train_batch_size, "
        "train_micro_batch_size_per_gpu and gradient_accumulation_steps, or set "
        "ignore_non_elastic_batch_info");
  }
  config::ElasticRequest r;
  r.max_batch = *from.Integer("elasticity.max_train_batch_size");
  r.min_ranks = *from.Integer("elasticity.min_gpus");
  r.max_ranks = *from.Integer("elasticity.max_gpus");
  r.prefer_larger = *from.Bool("elasticity.prefer_larger_batch");
  r.by_hosts = *from.Number("elasticity.version") > 0.1;
  r.ranks_per_host = *from.Integer("elasticity.num_gpus_per_node");
  if (const JsonValue* micros = from.At("elasticity.micro_batch_sizes");
      micros != nullptr && micros->kind == JsonValue::Kind::kList) {
    r.micro_batches.clear();
    for (const JsonValue& m : micros->list) {
      if (m.number != std::floor(m.number)) {
        return from.Fail(
            absl::StrCat("elasticity.micro_batch_sizes has ", m.Show(), ": write whole numbers"));
      }
      r.micro_batches.push_back(static_cast<int64_t>(m.number));
    }
  }
  if (r.micro_batches.empty() || r.micro_batches.size() > 1000 || r.max_ranks < r.min_ranks) {
    return from.Fail(
        "elasticity: micro_batch_sizes needs 1 to 1000 numbers, and max_gpus must not be below min_gpus");
  }
  const absl::StatusOr<config::BatchSizes> sizes = config::ElasticBatchSizes(r, world_size);
  if (!sizes.ok()) return from.Fail(sizes.status().message());
  *asked = {sizes->train, sizes->micro, sizes->accumulation};
}

void ResolveBatch(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  config::AskedBatchSizes asked = StatedBatchSizes(from);
  const bool elastic = IsElastic(from);
  if (elastic) ElasticBatch(from, program.world_size, &asked);
  const bool stated = asked.train.has_value() || asked.micro.has_value() || asked.accumulation.has_value();
  const auto take = [&](absl::string_view path, const ProgramValue<int64_t>& mine,
                        absl::optional<int64_t>* into) {
    if (elastic && !mine.flag.empty() && mine.value != *into && from.status().ok()) {
      return from.Fail(absl::StrCat("elasticity chooses ", path, " ", **into, ", but ", mine.flag, " says ",
                                    *mine.value, ": remove the flag"));
    }
    if (!elastic && from.IsSet(path)) from.Integer(path, mine);  // must not contradict a flag
    if (!into->has_value() && !mine.flag.empty()) *into = mine.value;
  };
  take("train_batch_size", program.train_batch, &asked.train);
  take("train_micro_batch_size_per_gpu", program.micro_batch, &asked.micro);
  take("gradient_accumulation_steps", program.accumulation, &asked.accumulation);
  if (!asked.train.has_value() && !asked.micro.has_value()) {
    asked.train = program.train_batch.value;
    asked.micro = program.micro_batch.value;
  }
  if (!from.status().ok()) return;
  if (!stated) {  // the program's own affair, also if it does not divide
    out->train_batch = asked.train.value_or(0);
    out->accumulation = static_cast<int>(asked.accumulation.value_or(program.accumulation.value.value_or(1)));
    const int64_t shares = int64_t{out->accumulation} * program.world_size;
    if (asked.micro.has_value()) out->train_batch = *asked.micro * shares;
    out->micro_batch = (out->train_batch + shares - 1) / shares;
    return;
  }
  const absl::StatusOr<config::BatchSizes> sizes = config::FillBatchSizes(asked, program.world_size);
  if (!sizes.ok()) return from.Fail(sizes.status().message());
  out->train_batch = sizes->train;
  out->micro_batch = sizes->micro;
  if (sizes->accumulation > (1 << 15)) {
    return from.Fail(absl::StrCat("gradient_accumulation_steps comes to ", sizes->accumulation,
                                  ": at most 32768; raise train_micro_batch_size_per_gpu"));
  }
  out->accumulation = static_cast<int>(sizes->accumulation);
}

DType DTypeOf(absl::string_view text) {
  const std::string lower = absl::AsciiStrToLower(text);
  return lower == "bf16" ? DType::kBFloat16 : lower == "fp16" ? DType::kFloat16 : DType::kFloat32;
}

void ResolvePrecision(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  const std::string bf16 = from.At("bf16.enabled") == nullptr ? "bfloat16.enabled" : "bf16.enabled";
  const bool fp16_set = from.IsSet("fp16.enabled"), bf16_set = from.IsSet(bf16);
  const bool fp16_on = fp16_set && *from.Bool("fp16.enabled"), bf16_on = bf16_set && *from.Bool(bf16);
  if (fp16_on && bf16_on)
    return from.Fail(absl::StrCat("fp16.enabled and ", bf16, " are both true: keep one"));
  const DType mine = program.compute.value.value_or(DType::kFloat32);
  const auto contradicts = [&](DType asked, absl::string_view key, absl::string_view value) {
    if (program.compute.flag.empty() || !program.compute.value.has_value() || mine == asked) return;
    from.Fail(absl::StrCat(key, " is ", value, ", but ", program.compute.flag, " says ", Name(mine),
                           ": remove the flag, or write \"auto\" in the file"));
  };
  if (fp16_on || bf16_on) {
    out->compute = fp16_on ? DType::kFloat16 : DType::kBFloat16;
    contradicts(out->compute, fp16_on ? "fp16.enabled" : bf16, "true");
  } else {
    // A program's default counts where its dtype is "auto"; its flag also where nothing is said.
    const bool open = mine == DType::kFloat16 ? !fp16_set : !bf16_set;
    const bool asks = from.At(mine == DType::kFloat16 ? "fp16.enabled" : bf16) != nullptr;
    if (mine != DType::kFloat32 && open && (asks || !program.compute.flag.empty())) out->compute = mine;
    if (mine != DType::kFloat32 && !open) {
      contradicts(DType::kFloat32, mine == DType::kFloat16 ? "fp16.enabled" : bf16, "false");
    }
  }
  if (from.IsSet("communication_data_type"))
    out->communication = DTypeOf(*from.Text("communication_data_type"));
  if (out->compute != DType::kFloat16) return;
  LossScaleSpec& scale = out->loss_scale;
  const double fixed = *from.Number("fp16.loss_scale", program.loss_scale);
  scale.dynamic = fixed == 0;
  scale.initial =
      scale.dynamic ? std::ldexp(1.0, static_cast<int>(*from.Integer("fp16.initial_scale_power"))) : fixed;
  scale.window = *from.Integer("fp16.loss_scale_window");
  scale.hysteresis = static_cast<uint32_t>(*from.Integer("fp16.hysteresis"));
  scale.min = *from.Number("fp16.min_loss_scale");
  if (scale.dynamic && scale.min > scale.initial) {
    from.Fail(absl::StrCat("fp16.min_loss_scale is ", scale.min,
                           ", above 2^initial_scale_power = ", scale.initial, ": lower it"));
  }
}

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();  // "2^63-1"

// A stage-3 key, with its prefix or without; "auto" is `automatic`, where the program says how large it is.
int64_t Stage3Key(ValueSource& from, absl::string_view key, absl::optional<int64_t> automatic) {
  for (const char* prefix : {"zero_optimization.stage3_", "zero_optimization."}) {
    const std::string path = absl::StrCat(prefix, key);
    if (from.At(path) == nullptr) continue;
    if (!from.IsSet(path) && automatic.has_value()) return *automatic;
    return from.Integer(path).value_or(kNoLimit);
  }
  return from.Integer(absl::StrCat("zero_optimization.stage3_", key)).value_or(kNoLimit);
}

void ResolveStage3(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  absl::optional<int64_t> ahead, small;
  if (program.hidden_size.has_value()) {
    const int64_t hidden = std::min(*program.hidden_size, int64_t{1} << 20);
    ahead = hidden * hidden / 10 * 9;
    small = 10 * hidden;
  }
  PrefetchLimits& limits = out->stage3.prefetch;
  limits.prefetch_bucket = Stage3Key(from, "prefetch_bucket_size", ahead);
  limits.max_live = Stage3Key(from, "max_live_parameters", absl::nullopt);
  limits.max_reuse_distance = Stage3Key(from, "max_reuse_distance", absl::nullopt);
  out->stage3.persistence.tensor = Stage3Key(from, "param_persistence_threshold", small);
  out->stage3.persistence.model = Stage3Key(from, "model_persistence_threshold", absl::nullopt);
  out->stage3.hpz_partition = static_cast<int>(*from.Integer("zero_optimization.zero_hpz_partition_size"));
}

void ResolveZero(ValueSource& from, const ProgramValues& program, TrainingConfig* out) {
  out->stage = static_cast<int>(*from.Integer("zero_optimization.stage", program.stage));
  out->shard_ranks = static_cast<int>(
      std::clamp<int64_t>(*from.Integer("zero_optimization.mics_shard_size"), 0, kMostShardRanks));
  ResolveStage3(from, program, out);
  const absl::string_view bucket = "zero_optimization.reduce_bucket_size";
  int64_t elements = *from.Integer(bucket);
  const bool is_auto = from.At(bucket) != nullptr && !from.IsSet(bucket);
  if (is_auto && program.hidden_size.has_value()) {
    elements =
        std::min(*program.hidden_size, int64_t{1} << 20) * std::min(*program.hidden_size, int64_t{1} << 20);
  }
  out->bucket_elements = std::min(std::max<int64_t>(elements, 1), kMostBucketElements);
  const auto offloads = [&](const std::string& section, absl::string_view old) {
    const absl::optional<std::string> device = from.Text(absl::StrCat(section, ".device"));
    return absl::AsciiStrToLower(device.value_or("none")) != "none" ||
           from.Bool(absl::StrCat("zero_optimization.", old)).value_or(false);
  };
  out->offload_optimizer = offloads("zero_optimization.offload_optimizer", "cpu_offload");
  out->offload_param = offloads("zero_optimization.offload_param", "cpu_offload_param");
}

}  // namespace

absl::StatusOr<DeepSpeedConfig> DeepSpeedConfig::Load(const std::string& path) {
  absl::StatusOr<std::string> text = formats::ReadWhole(path, config::kMaxDocumentBytes);
  if (!text.ok()) {
    return absl::Status(text.status().code(), absl::StrCat("the configuration: ", text.status().message()));
  }
  return Parse(*text, path);
}

absl::StatusOr<DeepSpeedConfig> DeepSpeedConfig::Parse(absl::string_view text, std::string name) {
  absl::StatusOr<JsonValue> root = config::ParseJsonDocument(text);
  if (!root.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", root.status().message()));
  DeepSpeedConfig file(std::move(name), *std::move(root));
  if (absl::Status ok = file.Check(); !ok.ok()) return ok;
  return file;
}

absl::Status DeepSpeedConfig::Check() {
  Checker checker(name_);
  if (absl::Status ok = checker.Walk("", root_); !ok.ok()) return ok;
  // Whatever does not depend on the program is found here, before anything is started.
  ValueSource from(name_, root_);
  TrainingConfig asked;
  ResolveZero(from, ProgramValues(), &asked);
  ResolvePrecision(from, ProgramValues(), &asked);
  config::ResolveOptimizer(from, ProgramValues(), &asked);
  config::ResolveScheduler(from, ProgramValues(), /*complete=*/false, &asked);
  if (!from.status().ok()) return from.status();
  if (config::CyclesInVain(asked)) {
    checker.Warn("scheduler.type",
                 absl::StrCat("OneCycle leaves momentum alone: ", Name(asked.optimizer.kind()),
                              " has no betas; write \"cycle_momentum\": false"));
  }
  warnings_ = checker.Lines();
  return absl::OkStatus();
}

absl::Status DeepSpeedConfig::CheckWorld(int world_size) const {
  ValueSource from(name_, root_);
  config::AskedBatchSizes asked = StatedBatchSizes(from);
  if (IsElastic(from)) {
    ElasticBatch(from, world_size, &asked);
    return from.status();
  }
  if (!asked.train.has_value() && !asked.micro.has_value()) return absl::OkStatus();
  // What "auto" becomes is the program's to say: an accumulation that it may choose is not held against it.
  const bool free = from.At("gradient_accumulation_steps") != nullptr && !asked.accumulation.has_value();
  if (free && !(asked.train.has_value() && asked.micro.has_value())) return absl::OkStatus();
  const absl::Status filled = config::FillBatchSizes(asked, world_size).status();
  return filled.ok() ? filled : absl::InvalidArgumentError(absl::StrCat(name_, ": ", filled.message()));
}

absl::StatusOr<TrainingConfig> DeepSpeedConfig::Resolve(const ProgramValues& program) const {
  ValueSource from(name_, root_);
  TrainingConfig out;
  ResolveZero(from, program, &out);
  ResolveBatch(from, program, &out);
  ResolvePrecision(from, program, &out);
  config::ResolveOptimizer(from, program, &out);
  config::ResolveScheduler(from, program, /*complete=*/true, &out);
  out.max_grad_norm = *from.Number("gradient_clipping", program.max_grad_norm);
  if (!from.status().ok()) return from.status();
  return out;
}

}  // namespace sherd

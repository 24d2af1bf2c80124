#include "client/examples/train_config.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/examples/gpt_config.h"

namespace sherd::examples {
namespace {

// The flags as the configuration looks at them.
ProgramValues FromFlags(const TrainOptions& options, int world_size) {
  const auto value = [&options](auto v, const char* flag) {
    ProgramValue<decltype(v)> out;
    out.value = v;
    if (options.given.count(flag) != 0) out.flag = flag;
    return out;
  };
  ProgramValues mine;
  mine.world_size = world_size;
  if (const auto model = GptConfig::Named(options.size, options.context); model.ok()) {
    mine.hidden_size = model->width;
  }
  mine.stage = value(int64_t{options.stage}, "--stage");
  mine.train_batch = value(options.global_batch, "--global-batch");
  mine.accumulation = value(options.accumulation, "--accumulation");
  mine.total_steps.value = static_cast<int64_t>(std::max<uint64_t>(options.steps, 1));
  mine.warmup_steps.value = std::max<int64_t>(*mine.total_steps.value / 10, 1);
  if (options.given.count("--warmup") != 0) mine.warmup_steps = value(options.warmup, "--warmup");
  mine.lr = value(options.lr, "--lr");
  mine.weight_decay = value(options.weight_decay, "--weight-decay");
  mine.max_grad_norm = value(options.clip, "--clip");
  const GroupScalars own = ChooseOptimizer(options, options.weight_decay, true).scalars();
  mine.compute = value(options.compute, "--precision");
  if (options.given.count("--loss-scale") != 0) {
    mine.loss_scale = value(options.loss_scale->dynamic ? 0.0 : options.loss_scale->initial, "--loss-scale");
  }
  mine.betas.value = {own[kBeta1], own[kBeta2]};
  mine.eps.value = own[kEps];
  return mine;
}

absl::Status Contradicts(const DeepSpeedConfig& file, absl::string_view key, absl::string_view says,
                         absl::string_view flag, absl::string_view value) {
  return absl::InvalidArgumentError(absl::StrCat(file.name(), ": ", key, " comes to ", says, ", but ", flag,
                                                 " says ", value, ": keep one"));
}

}  // namespace

absl::Status ApplyConfig(const DeepSpeedConfig& file, int world_size, TrainOptions* options) {
  absl::StatusOr<TrainingConfig> asked = file.Resolve(FromFlags(*options, world_size));
  if (!asked.ok()) return asked.status();
  if (asked->has_optimizer) {
    const std::string name = Name(asked->optimizer.kind());
    if (options->given.count("--optimizer") != 0 && options->optimizer != name) {
      return Contradicts(file, "optimizer.type", name, "--optimizer", options->optimizer);
    }
    options->optimizer = name;
    if (options->given.count("--lr") == 0) {  // for "auto": the rate that suits the file's optimizer
      options->lr = DefaultRate(name, options->size);
      asked = file.Resolve(FromFlags(*options, world_size));
      if (!asked.ok()) return asked.status();
    }
    options->own_optimizer = asked->optimizer;
    if (asked->others.has_value()) options->own_others = *asked->others;
    options->lr = asked->optimizer.scalars()[kLr];
    options->weight_decay = asked->optimizer.scalars()[kWeightDecay];
  }
  if (asked->schedule.has_value()) {
    if (options->given.count("--schedule") != 0 && options->schedule != asked->schedule->name) {
      return Contradicts(file, "scheduler.type", asked->schedule->name, "--schedule", options->schedule);
    }
    options->own_schedule = *asked->schedule;
  }
  options->stage = asked->stage;
  options->global_batch = asked->train_batch;
  options->accumulation = asked->accumulation;
  options->clip = asked->max_grad_norm;
  options->bucket_elements = asked->bucket_elements;
  if (options->given.count("--mics-shard-size") == 0) options->shard_ranks = asked->shard_ranks;
  const auto take = [options](const char* flag, int64_t from, int64_t* to) {
    if (options->given.count(flag) == 0) *to = from;
  };
  take("--prefetch-bucket", asked->stage3.prefetch.prefetch_bucket,
       &options->stage3.prefetch.prefetch_bucket);
  take("--max-live", asked->stage3.prefetch.max_live, &options->stage3.prefetch.max_live);
  take("--max-reuse-distance", asked->stage3.prefetch.max_reuse_distance,
       &options->stage3.prefetch.max_reuse_distance);
  take("--persistence-threshold", asked->stage3.persistence.tensor, &options->stage3.persistence.tensor);
  options->stage3.persistence.model = asked->stage3.persistence.model;
  options->stage3.hpz_partition = asked->stage3.hpz_partition;
  options->compute = asked->compute;
  if (asked->communication.has_value()) options->communication = *asked->communication;
  if (options->given.count("--loss-scale") == 0) options->loss_scale = asked->loss_scale;
  return absl::OkStatus();
}

}  // namespace sherd::examples

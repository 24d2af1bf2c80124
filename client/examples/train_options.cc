#include "client/examples/train_options.h"

#include <CLI/CLI.hpp>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/examples/flag_checks.h"
#include "client/examples/gpt_config.h"

namespace sherd::examples {

absl::StatusOr<std::optional<TrainOptions>> ParseTrainOptions(int argc, const char* const* argv) {
  TrainOptions options;
  CLI::App app(
      "Trains a byte-level GPT on a text, its state sharded over Sherd's servers (start it with `sherd "
      "run`), "
      "or with --reference alone in one process.",
      "train_gpt");
  const auto in = [](auto low, auto high) { return CLI::Range(low, high); };
  std::vector<std::string> sizes;
  for (absl::string_view size : kGptSizes) sizes.emplace_back(size);
  app.add_option("--size", options.size, "tiny (0.4M parameters), small (10.8M), gpt2 (85M), gpt2-xl (1.5G)")
      ->check(CLI::IsMember(sizes))
      ->capture_default_str();
  app.add_option("--text", options.text,
                 "file to train on (default: the King James Bible of bible-kjv-text)");
  app.add_option("--steps", options.steps, "updates to make in all")
      ->check(in(uint64_t{1}, uint64_t{1} << 39))
      ->capture_default_str();
  app.add_option("--global-batch", options.global_batch, "samples a step, over all ranks")
      ->check(in(1, 1 << 30))
      ->capture_default_str();
  app.add_option("--context", options.context, "bytes a sample")
      ->check(in(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--experts", options.experts,
                 "mixture of so many feed-forward networks a block, one a token; 0: one for all")
      ->check(in(0, 1024))
      ->capture_default_str();
  app.add_option("--freeze", options.freeze,
                 "train neither the embeddings nor so many blocks, from the first on; 0: train all")
      ->check(in(0, 1024))
      ->capture_default_str();
  app.add_option("--accumulation,--micro-batches", options.accumulation, "micro-batches a step")
      ->check(in(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--mics-shard-size", options.shard_ranks,
                 "on several hosts: groups of so many trainers each hold the state once (0: all are one)")
      ->check(CLI::Range(0, 4096));
  app.add_option("--virtual-ranks", options.virtual_ranks,
                 "arithmetic of so many trainers at every number of them that divides it (a power of two)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--optimizer", options.optimizer, absl::StrJoin(OptimizerNames(), ", "))
      ->check(CLI::IsMember(OptimizerNames()))
      ->capture_default_str();
  app.add_option(
         "--lr", options.lr,
         "learning rate (default: of adam and adamw by size 1e-3, 6e-4, 6e-4, 2e-4; else the optimizer's)")
      ->check(NotNegative);
  app.add_option("--schedule", options.schedule,
                 "of the learning rate: " + absl::StrJoin(ScheduleNames(), ", ") +
                     "; those that end do so at --steps")
      ->check(CLI::IsMember(ScheduleNames()));
  app.add_option("--warmup", options.warmup, "updates in which the learning rate rises (default: a tenth)")
      ->check(NotNegative);
  app.add_option("--warmup-type", options.warmup_type,
                 "how it rises in the schedules of DeepSpeed: log, linear");
  app.add_option("--weight-decay", options.weight_decay, "of the blocks' matrices; nothing else decays")
      ->check(NotNegative)
      ->capture_default_str();
  app.add_option("--clip", options.clip, "largest norm of the gradient; 0: no limit")
      ->check(NotNegative)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of initial values, samples and generated text")
      ->check(NotNegative)
      ->capture_default_str();
  std::string init = "process";
  CLI::Option* init_option =
      app.add_option(
             "--init", init,
             "where initial values come about: process, in rank 0's memory; sharded, in the job's alone, "
             "by seed, name and element (other values than the former's)")
          ->check(CLI::IsMember({"process", "sharded"}))
          ->capture_default_str();
  app.add_option("--stage", options.stage, "ZeRO stage: 0, 1, 2 or 3")
      ->check(in(0, 3))
      ->capture_default_str();
  const auto elements = [&](const char* flag, int64_t* value, const char* what) {
    app.add_option(flag, *value, absl::StrCat("stage 3, in elements: ", what))
        ->check(NotNegative)
        ->capture_default_str();
  };
  elements("--prefetch-bucket", &options.stage3.prefetch.prefetch_bucket, "gathered ahead of use");
  elements("--max-live", &options.stage3.prefetch.max_live, "nothing is kept or gathered ahead beyond");
  elements("--max-reuse-distance", &options.stage3.prefetch.max_reuse_distance,
           "what is used again before so many others are stays gathered");
  elements("--persistence-threshold", &options.stage3.persistence.tensor,
           "tensors of at most so many are never released");
  std::string precision = "fp32";
  app.add_option("--precision", precision,
                 "of parameters and gradients: fp32, bf16 or fp16; masters are fp32")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  double loss_scale = 0;
  app.add_option("--loss-scale", loss_scale,
                 "what the loss is multiplied by; 0: dynamic (default: dynamic with fp16, else 1)")
      ->check(NotNegative);
  app.add_flag("--stochastic-rounding", options.stochastic_rounding,
               "round updated 16-bit parameters by chance, right in the mean, not to the nearest");
  std::string sampling = "random";
  app.add_option(
         "--sampling", sampling,
         "of the text: random, windows at any place; pass, each of its windows once a pass, in an order "
         "drawn by seed and pass, whoever comes and goes")
      ->check(CLI::IsMember({"random", "pass"}))
      ->capture_default_str();
  app.add_option("--log-samples", options.log_samples,
                 "append to this file what each rank computes: step, world size, rank, micro-batch, numbers "
                 "of windows (or "
                 "where they begin, with random sampling)");
  app.add_option("--json", options.json, "write one JSON object a step to this file");
  app.add_option("--save", options.save,
                 "write the weights (fp32, whatever the precision) to this safetensors file at the end");
  CLI::Option* save_checkpoint = app.add_option(
      "--save-checkpoint", options.save_checkpoint,
      "let the servers save all state into this directory, while training goes on; after the last step at "
      "least");
  app.add_option("--save-every", options.save_every, "steps between checkpoints; 0: only after the last step")
      ->check(NotNegative)
      ->needs(save_checkpoint);
  app.add_option("--keep", options.keep, "checkpoints to keep in the directory; 0: all")
      ->check(in(0, 1000000))
      ->needs(save_checkpoint);
  CLI::Option* restore =
      app.add_option("--restore", options.restore,
                     "begin as the newest checkpoint in this directory ends, at any size, or "
                     "with the weights that a file or folder holds");
  app.add_option("--restore-tag", options.restore_tag, "that checkpoint instead of the newest")
      ->needs(restore);
  app.add_flag("--weights-only", options.weights_only, "restore parameters alone, and begin at step 0")
      ->needs(restore);
  app.add_flag("--partial", options.partial,
               "restore the tensors that agree in name and shape; others begin with initial values")
      ->needs(restore);
  CLI::Option* write = app.add_option("--write", options.write_name,
                                      "parameter whose elements rank 0 all sets to --write-value, with the "
                                      "update of --write-step");
  write->needs(app.add_option("--write-value", options.write_value)->needs(write));
  write->needs(app.add_option("--write-step", options.write_step)->check(in(1, 1 << 30))->needs(write));
  CLI::Option* save_optimizer = app.add_flag(
      "--save-optimizer", options.save_optimizer,
      "with --reference: the optimizer's planes too, named as `sherd pull --with-optimizer` names them");
  app.add_option("--eval-every", options.eval_every, "steps between held-out losses; 0: only at the end")
      ->check(NotNegative)
      ->capture_default_str();
  app.add_option("--generate", options.generate, "print this many bytes of the model's own at the end")
      ->check(in(0, 1 << 20))
      ->capture_default_str();
  CLI::Option* reference =
      app.add_flag("--reference", options.reference, "one process, libtorch's own optimizer, no Sherd");
  save_optimizer->needs(reference);
  save_checkpoint->excludes(reference);
  restore->excludes(reference);
  write->excludes(reference);
  init_option->excludes(reference);
  try {
    app.parse(argc, const_cast<char**>(argv));
  } catch (const CLI::Success& asked) {
    app.exit(asked);
    return std::optional<TrainOptions>();
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(error.what(), " (see train_gpt --help)"));
  }
  for (const CLI::Option* flag : app.get_options()) {
    if (flag->count() > 0) options.given.insert("--" + flag->get_lnames().front());
  }
  options.by_pass = sampling == "pass";
  options.init_sharded = init == "sharded";
  options.compute = precision == "bf16"   ? DType::kBFloat16
                    : precision == "fp16" ? DType::kFloat16
                                          : DType::kFloat32;
  if (app.count("--loss-scale") > 0) {
    options.loss_scale = loss_scale == 0 ? DynamicLossScale() : LossScaleSpec();
    if (loss_scale != 0) options.loss_scale->initial = loss_scale;
  }
  if (options.stochastic_rounding && options.reference) {
    return absl::InvalidArgumentError(
        "--stochastic-rounding is the servers': it does not go with --reference");
  }
  if (app.count("--lr") == 0) options.lr = DefaultRate(options.optimizer, options.size);
  if (app.count("--schedule") == 0 && app.count("--warmup") + app.count("--warmup-type") > 0) {
    return absl::InvalidArgumentError("--warmup and --warmup-type belong to a --schedule; none was given");
  }
  if ((options.schedule == "OneCycle" || options.schedule == "LRRangeTest") && app.count("--warmup") > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--warmup does not go with --schedule ", options.schedule, ": it has no warm-up"));
  }
  if (absl::StatusOr<std::optional<Schedule>> s = ChooseSchedule(options, options.steps); !s.ok())
    return s.status();
  return std::optional<TrainOptions>(options);
}

}  // namespace sherd::examples

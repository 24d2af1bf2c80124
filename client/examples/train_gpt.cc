// Trains a byte-level GPT, with its state on Sherd's shard servers or (--reference) in this process alone.
//
//   sherd run -n 2 -- train_gpt --size small --steps 400 --save model.safetensors
//   sherd run -n 2 --config ds.json -- train_gpt          (DeepSpeed's configuration, by SHERD_CONFIG)
//   train_gpt --reference --steps 100 --json reference.json
//
// Exit status: 0 done, 1 failed, 2 usage; errors are one line on stderr.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/config/deepspeed_config.h"
#include "client/examples/gpt.h"
#include "client/examples/gpt_config.h"
#include "client/examples/process_setup.h"
#include "client/examples/reference_trainer.h"
#include "client/examples/sampler.h"
#include "client/examples/sherd_trainer.h"
#include "client/examples/text.h"
#include "client/examples/torch_errors.h"
#include "client/examples/train_config.h"
#include "client/examples/train_loop.h"
#include "client/examples/train_options.h"
#include "client/session.h"
#include "client/torch/meta_init.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::examples {
namespace {

absl::StatusOr<std::unique_ptr<Trainer>> MakeTrainer(const std::string& endpoint, const TrainOptions& options,
                                                     const Text& text, std::shared_ptr<Gpt> model) {
  if (options.reference) return MakeReferenceTrainer(std::move(model), options);
  SamplerState sampler;
  sampler.seed = options.seed;
  sampler.global_batch = options.global_batch;
  sampler.context = options.context;
  sampler.text_crc = text.crc();
  return MakeSherdTrainer(endpoint, std::move(model), options, sampler);
}

absl::Status Run(const TrainOptions& options, const std::string& endpoint) try {
  if (!options.save.empty()) {  // now, not after the last step
    if (absl::Status s = formats::AtomicFile::CheckTarget(options.save); !s.ok()) return s;
  }
  const absl::StatusOr<Text> text = Text::Load(options.text);
  if (!text.ok()) return text.status();
  if (absl::Status enough = text->CheckContext(options.context); !enough.ok()) return enough;
  absl::StatusOr<GptConfig> config = GptConfig::Named(options.size, options.context);
  if (!config.ok()) return config.status();
  config->experts = options.experts;
  if (options.freeze > config->layers) {
    return absl::InvalidArgumentError(absl::StrCat("--freeze ", options.freeze, ": a model of size ",
                                                   options.size, " has ", config->layers, " blocks"));
  }
  std::optional<sherd::torch::MetaInit> sharded;
  if (options.init_sharded) sharded.emplace(options.seed);
  auto model = std::make_shared<Gpt>(*config);
  model->Initialize(options.seed);
  if (options.freeze > 0) model->Freeze(options.freeze);
  sharded.reset();
  const absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(endpoint, options, *text, model);
  if (!trainer.ok()) return trainer.status();
  Console console;
  console.terminal = isatty(STDERR_FILENO);
  return TrainLoop(options, *text, *model, **trainer, console);
} catch (...) {
  return StatusOfException();
}

// The file that `sherd run --config` named.
absl::Status ReadConfig(const std::string& path, TrainOptions* options) {
  const absl::StatusOr<DeepSpeedConfig> file = DeepSpeedConfig::Load(path);
  if (!file.ok()) return file.status();
  const int world_size = options->reference ? 1 : SessionOptions::FromEnvironment().world_size;
  return ApplyConfig(*file, std::max(world_size, 1), options);
}

int Main(int argc, char** argv) {
  SetUpProcess();
  absl::StatusOr<std::optional<TrainOptions>> options = ParseTrainOptions(argc, argv);
  if (!options.ok()) {
    absl::FPrintF(stderr, "train_gpt: %s\n", options.status().message());
    return 2;
  }
  if (!options->has_value()) return 0;
  if (const char* config = getenv(DeepSpeedConfig::kVariable); config != nullptr && config[0] != '\0') {
    if (absl::Status read = ReadConfig(config, &**options); !read.ok()) {
      absl::FPrintF(stderr, "train_gpt: %s\n", read.message());
      return 1;
    }
  }
  const char* endpoint = getenv("SHERD_ENDPOINT");
  const absl::Status status = Run(**options, endpoint == nullptr ? "" : endpoint);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "train_gpt: %s\n", status.message());
  return 1;
}

}  // namespace
}  // namespace sherd::examples

int main(int argc, char** argv) { return sherd::examples::Main(argc, argv); }

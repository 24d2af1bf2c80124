// Prints text from a model that train_gpt or `sherd pull` wrote. Knows nothing of the job that trained it:
// the file's shapes say how large the model is. With --sharded the model lies in the shard servers of a job
// of its own, and the ranks share out the prompts.
//
//   sample_gpt --file model.safetensors --prompt "In the beginning" --tokens 300
//   sherd run -n 2 -- sample_gpt --sharded --file gpt/ --dtype bf16 --prompt "Let" --prompt "And"
//
// Exit status: 0 done, 1 failed, 2 usage; errors are one line on stderr.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/examples/flag_checks.h"
#include "client/examples/generate.h"
#include "client/examples/gpt.h"
#include "client/examples/process_setup.h"
#include "client/examples/sharded_gpt.h"
#include "client/examples/torch_errors.h"
#include "client/examples/weights.h"

namespace sherd::examples {
namespace {

const std::map<std::string, DType> kDTypes = {
    {"fp32", DType::kFloat32}, {"bf16", DType::kBFloat16}, {"fp16", DType::kFloat16}};

struct SampleOptions {
  std::string file;
  std::vector<std::string> prompts{""};
  GenerateOptions generate;
  bool sharded = false;
  DType compute = DType::kFloat32;
};

// Those of the prompts that are this rank's turn.
absl::Status Print(Gpt& model, const SampleOptions& options, int rank, int world_size) {
  for (size_t i = rank; i < options.prompts.size(); i += world_size) {
    const std::string& prompt = options.prompts[i];
    absl::PrintF("%s\n", Printable(prompt + Generate(model, prompt, options.generate)));
  }
  if (fflush(stdout) != 0) return absl::UnknownError("cannot write to standard output");
  return absl::OkStatus();
}

absl::Status Run(const SampleOptions& options) try {
  if (!options.sharded) {
    const absl::StatusOr<std::shared_ptr<Gpt>> model = LoadWeights(options.file);
    if (!model.ok()) return model.status();
    return Print(**model, options, 0, 1);
  }
  const char* const endpoint = std::getenv("SHERD_ENDPOINT");
  const absl::StatusOr<std::unique_ptr<ShardedGpt>> gpt =
      ShardedGpt::Load(endpoint == nullptr ? "" : endpoint, options.file, options.compute);
  if (!gpt.ok()) return gpt.status();
  const absl::Status printed = Print((*gpt)->model(), options, (*gpt)->rank(), (*gpt)->world_size());
  if (!printed.ok()) return printed;
  return (*gpt)->Finish();
} catch (...) {
  return StatusOfException();
}

int Main(int argc, char** argv) {
  SetUpProcess();
  SampleOptions options;
  GenerateOptions& generate = options.generate;
  CLI::App app("Prints text from a GPT's safetensors file.", "sample_gpt");
  app.add_option("--file", options.file, "safetensors of a model of train_gpt: a file, or a folder of them")
      ->required();
  app.add_option("--prompt", options.prompts, "text to go on from; may be given several times")
      ->allow_extra_args(false);
  CLI::Option* const sharded =
      app.add_flag("--sharded", options.sharded, "the model lies in shard servers: under sherd run");
  app.add_option("--dtype", options.compute, "what a sharded model computes in")
      ->transform(CLI::CheckedTransformer(kDTypes))
      ->needs(sharded);
  app.add_option("--tokens", generate.tokens, "bytes to print")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--temperature", generate.temperature, "0: always the likeliest byte")
      ->check(NotNegative)
      ->capture_default_str();
  app.add_option("--top-k", generate.top_k, "draw among this many likeliest bytes; 0: all")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  app.add_option("--seed", generate.seed, "of the draws")->check(NotNegative)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    absl::FPrintF(stderr, "sample_gpt: %s (see sample_gpt --help)\n", error.what());
    return 2;
  }
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "sample_gpt: %s\n", status.message());
  return 1;
}

}  // namespace
}  // namespace sherd::examples

int main(int argc, char** argv) { return sherd::examples::Main(argc, argv); }

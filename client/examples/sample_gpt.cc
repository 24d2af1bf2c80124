// Prints text from a model that train_gpt or `sherd pull` wrote. Knows nothing of the job that trained it:
// the file's shapes say how large the model is.
//
//   sample_gpt --file model.safetensors --prompt "In the beginning" --tokens 300
//
// Exit status: 0 done, 1 failed, 2 usage; errors are one line on stderr.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "client/examples/flag_checks.h"
#include "client/examples/generate.h"
#include "client/examples/gpt.h"
#include "client/examples/process_setup.h"
#include "client/examples/torch_errors.h"
#include "client/examples/weights.h"

namespace sherd::examples {
namespace {

absl::Status Run(const std::string& file, const std::string& prompt, const GenerateOptions& options) try {
  const absl::StatusOr<std::shared_ptr<Gpt>> model = LoadWeights(file);
  if (!model.ok()) return model.status();
  absl::PrintF("%s\n", Printable(prompt + Generate(**model, prompt, options)));
  if (fflush(stdout) != 0) return absl::UnknownError("cannot write to standard output");
  return absl::OkStatus();
} catch (...) {
  return StatusOfException();
}

int Main(int argc, char** argv) {
  SetUpProcess();
  std::string file, prompt;
  GenerateOptions options;
  CLI::App app("Prints text from a GPT's safetensors file.", "sample_gpt");
  app.add_option("--file", file, "safetensors file of a model of train_gpt")->required();
  app.add_option("--prompt", prompt, "text to go on from");
  app.add_option("--tokens", options.tokens, "bytes to print")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "0: always the likeliest byte")
      ->check(NotNegative)
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "draw among this many likeliest bytes; 0: all")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the draws")->check(NotNegative)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    absl::FPrintF(stderr, "sample_gpt: %s (see sample_gpt --help)\n", error.what());
    return 2;
  }
  const absl::Status status = Run(file, prompt, options);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "sample_gpt: %s\n", status.message());
  return 1;
}

}  // namespace
}  // namespace sherd::examples

int main(int argc, char** argv) { return sherd::examples::Main(argc, argv); }

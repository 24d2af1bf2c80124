// Reads DeepSpeed's configuration file as it stands.
//
//   auto file = sherd::DeepSpeedConfig::Load("ds_z2.json");        // every key checked
//   for (const std::string& line : file->warnings()) ...            // what Sherd does instead, key by key
//   sherd::ProgramValues mine;                                      // what "auto" becomes
//   mine.world_size = session->world_size();
//   mine.lr = {3e-4};
//   auto asked = file->Resolve(mine);
//   auto zero = sherd::torch::ZeroOptimizer::Create(*session, model->named_parameters(), asked->optimizer,
//                                                   asked->Zero().steps(1000));
//
// Where a value comes from, in this order: the file; a flag that the program's user gave (which must not
// contradict the file); for "auto" what the program has anyhow; DeepSpeed's default.
//
// Errors are INVALID_ARGUMENT in one line: file, key, value, what to write instead. Immutable after Load;
// thread-safe. Keys and what becomes of them: client/config/README.md.
#ifndef SHERD_CLIENT_CONFIG_DEEPSPEED_CONFIG_H_
#define SHERD_CLIENT_CONFIG_DEEPSPEED_CONFIG_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/config/json_value.h"
#include "client/config/program_values.h"
#include "client/config/training_config.h"

namespace sherd {

class DeepSpeedConfig {
 public:
  // Name of the environment variable by which `sherd run --config` tells trainers the file's absolute path.
  static constexpr const char* kVariable = "SHERD_CONFIG";

  // Reads the file and checks every key. NOT_FOUND and the like if it cannot be read; OUT_OF_RANGE if it is
  // longer than 1 MiB. Never waits, as for a pipe: INVALID_ARGUMENT.
  static absl::StatusOr<DeepSpeedConfig> Load(const std::string& path);
  // The same of a text; `name` stands for the file in messages.
  static absl::StatusOr<DeepSpeedConfig> Parse(absl::string_view text, std::string name);

  const std::string& name() const { return name_; }
  // One line for each thing that Sherd does otherwise, naming all keys that ask for it. For a person, once.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // OK unless the file's own batch sizes contradict each other for so many trainers.
  absl::Status CheckWorld(int world_size) const;

  // INVALID_ARGUMENT: the file contradicts a flag (both named) or the batch arithmetic, or asks for what is
  // not there.
  absl::StatusOr<TrainingConfig> Resolve(const ProgramValues& program) const;

 private:
  DeepSpeedConfig(std::string name, config::JsonValue root)
      : name_(std::move(name)), root_(std::move(root)) {}
  absl::Status Check();

  std::string name_;
  config::JsonValue root_;
  std::vector<std::string> warnings_;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_CONFIG_DEEPSPEED_CONFIG_H_

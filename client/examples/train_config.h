// A DeepSpeed configuration over train_gpt's flags.
#ifndef SHERD_CLIENT_EXAMPLES_TRAIN_CONFIG_H_
#define SHERD_CLIENT_EXAMPLES_TRAIN_CONFIG_H_

#include "absl/status/status.h"
#include "client/config/deepspeed_config.h"
#include "client/examples/train_options.h"

namespace sherd::examples {

// What the file says replaces the flags' defaults; "auto" becomes what the flags or the model have.
// INVALID_ARGUMENT in one line: the file contradicts a flag that was given (both are named), or its batch
// sizes do not agree with `world_size` trainers.
absl::Status ApplyConfig(const DeepSpeedConfig& file, int world_size, TrainOptions* options);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TRAIN_CONFIG_H_

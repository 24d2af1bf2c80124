// The trainer whose updates are made by Sherd's shard servers.
#ifndef SHERD_CLIENT_EXAMPLES_SHERD_TRAINER_H_
#define SHERD_CLIENT_EXAMPLES_SHERD_TRAINER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/examples/gpt.h"
#include "client/examples/sampler.h"
#include "client/examples/train_options.h"
#include "client/examples/trainer.h"

namespace sherd::examples {

// Attaches `model` to the job at `endpoint` (SHERD_ENDPOINT; empty when it is not set). `sampler` goes along
// in every step's blob; if the job has made steps already, the blob it hands back must agree with it.
// kFailedPrecondition: there is no endpoint, or the job was started with other flags; the message says which.
absl::StatusOr<std::unique_ptr<Trainer>> MakeSherdTrainer(const std::string& endpoint,
                                                          std::shared_ptr<Gpt> model,
                                                          const TrainOptions& options,
                                                          const SamplerState& sampler);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_SHERD_TRAINER_H_

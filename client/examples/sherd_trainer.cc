#include "client/examples/sherd_trainer.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sherd::examples {

absl::StatusOr<std::unique_ptr<Trainer>> MakeSherdTrainer(const std::string& endpoint,
                                                          std::shared_ptr<Gpt> model,
                                                          const TrainOptions& options,
                                                          const SamplerState& sampler) {
  if (endpoint.empty()) {
    return absl::FailedPreconditionError(
        "SHERD_ENDPOINT is not set: start with `sherd run -n 2 -- train_gpt ...`, or give --reference to "
        "train in this "
        "process alone");
  }
  return absl::UnimplementedError(
      absl::StrCat("cannot attach to ", endpoint, ": this build has no Sherd client; give --reference"));
}

}  // namespace sherd::examples

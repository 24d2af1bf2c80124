// `sherd save` and `sherd restore`.
#ifndef SHERD_CLIENT_CLI_CHECKPOINT_H_
#define SHERD_CLIENT_CLI_CHECKPOINT_H_

#include <string>

#include "absl/status/status.h"
#include "client/cli/context.h"
#include "client/pending_save.h"

namespace sherd::cli {

struct RestoreCommandOptions {
  std::string directory, tag;
  bool weights_only = false, partial = false;
};

// Errors: CheckpointService.Save's and Restore's.
absl::Status SaveCommand(Context& context, const SaveOptions& options);
absl::Status RestoreCommand(Context& context, const RestoreCommandOptions& options);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_CHECKPOINT_H_

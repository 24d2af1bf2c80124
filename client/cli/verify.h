// `sherd verify`.
#ifndef SHERD_CLIENT_CLI_VERIFY_H_
#define SHERD_CLIENT_CLI_VERIFY_H_

#include "absl/status/status.h"
#include "client/cli/context.h"

namespace sherd::cli {

// Compares all copies of the job's state. DATA_LOSS if they differ: what differs is on `out` then. Other
// errors: CheckpointService.CompareCopies's.
absl::Status VerifyCommand(Context& context);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_VERIFY_H_

// `sherd pull`, `sherd push`, `sherd gc` as commands: pull.h, push.h and runtime/job_dir.h do the work, these
// tell what was done.
#ifndef SHERD_CLIENT_CLI_TRANSFER_H_
#define SHERD_CLIENT_CLI_TRANSFER_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "client/cli/consolidated.h"
#include "client/cli/context.h"
#include "client/cli/pull.h"

namespace sherd::cli {

absl::Status PullCommand(Context& context, const PullOptions& options);
absl::Status PushCommand(Context& context, const std::string& path, const PushChoice& choice);
// Removes what dead jobs of this user left under `shm_root`. Talks to nobody.
absl::Status GcCommand(const std::string& shm_root, bool json, std::ostream& out);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_TRANSFER_H_

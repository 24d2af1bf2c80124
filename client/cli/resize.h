// `sherd resize`: another number of servers, while training goes on.
#ifndef SHERD_CLIENT_CLI_RESIZE_H_
#define SHERD_CLIENT_CLI_RESIZE_H_

#include "absl/status/status.h"
#include "client/cli/context.h"

namespace sherd::cli {

// Waits until it is done and writes what it cost. Errors are the call's; DATA_LOSS if it ended without a
// result.
absl::Status ResizeServers(Context& context, int servers);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_RESIZE_H_

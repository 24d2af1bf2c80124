// `sherd resize`: another number of servers or trainers, while training goes on.
#ifndef SHERD_CLIENT_CLI_RESIZE_H_
#define SHERD_CLIENT_CLI_RESIZE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "client/cli/context.h"

namespace sherd::cli {

// One of the two numbers is not 0: that one changes. Waits until it is done and writes what it cost. Errors
// are the call's; DATA_LOSS if it ended without a result.
absl::Status Resize(Context& context, int servers, int trainers, uint64_t from_step, bool give_up_step);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_RESIZE_H_

// `sherd top`: the job as it moves, drawn again each second until interrupted.
#ifndef SHERD_CLIENT_CLI_TOP_H_
#define SHERD_CLIENT_CLI_TOP_H_

#include "absl/status/status.h"
#include "client/cli/context.h"

namespace sherd::cli {

// `terminal`: whether context.out is one; otherwise one picture is drawn. Ends with OK at the deadline, with
// CANCELLED when the client is cancelled, or with a call's error.
absl::Status Top(Context& context, bool terminal);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_TOP_H_

// `sherd resize` and `sherd drain`: other servers or trainers, while training goes on.
#ifndef SHERD_CLIENT_CLI_RESIZE_H_
#define SHERD_CLIENT_CLI_RESIZE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "client/cli/context.h"

namespace sherd::cli {

// One of the two numbers is not 0: that one changes. Waits until it is done and writes what it cost. Errors
// are the call's; DATA_LOSS if it ended without a result.
absl::Status Resize(Context& context, int servers, int trainers, uint64_t from_step, bool give_up_step);

// The slots of one server go to others, so that it may be stopped: `member` is its name, or the number of a
// slot that it holds. Or the job goes on without its last trainer, "rank-2", which ends by itself.
//   NOT_FOUND            no such member: says which there are
//   FAILED_PRECONDITION  a trainer that is not the last one, or the only one: says what to do
absl::Status DrainMember(Context& context, const std::string& member);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_RESIZE_H_

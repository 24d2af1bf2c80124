// `sherd verify`.
#ifndef SHERD_CLIENT_CLI_VERIFY_H_
#define SHERD_CLIENT_CLI_VERIFY_H_

#include <string>

#include "absl/status/status.h"
#include "client/cli/context.h"
#include "proto/sherd/v1/checkpoint.pb.h"

namespace sherd::cli {

// Compares all copies of the job's state. DATA_LOSS if they differ: what differs is on `out` then. Other
// errors: CheckpointService.CompareCopies's.
absl::Status VerifyCommand(Context& context);

// "h.0.attn.weight exp_avg[5:7]: host 1 differs from hosts 0, 2"
std::string Describe(const v1::CompareCopiesResponse::Difference& difference);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_VERIFY_H_

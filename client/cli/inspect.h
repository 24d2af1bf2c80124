// `sherd status`, `sherd ls`, `sherd stat`: what a job is and holds, as tables or as JSON.
#ifndef SHERD_CLIENT_CLI_INSPECT_H_
#define SHERD_CLIENT_CLI_INSPECT_H_

#include <string>

#include "absl/status/status.h"
#include "client/cli/context.h"
#include "proto/sherd/v1/cluster.pb.h"

namespace sherd::cli {

// The table of `status` (and of `top`).
std::string StatusText(const v1::Cluster& cluster);
std::string StatusJson(const v1::Cluster& cluster);

// Each writes to context.out. Errors are the calls'; an `ls` that finds nothing writes a table without rows,
// a `stat` that finds nothing is NOT_FOUND.
absl::Status ShowStatus(Context& context);
absl::Status ShowTensors(Context& context, const std::string& glob);
absl::Status ShowStats(Context& context, const std::string& glob, const std::string& plane);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_INSPECT_H_

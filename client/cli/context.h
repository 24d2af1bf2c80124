// What every command that talks to a job is given.
#ifndef SHERD_CLIENT_CLI_CONTEXT_H_
#define SHERD_CLIENT_CLI_CONTEXT_H_

#include <ostream>

#include "absl/time/time.h"
#include "client/cli/progress.h"
#include "client/rpc/job_client.h"

namespace sherd::cli {

struct Context {
  rpc::JobClient& client;
  absl::Time deadline;  // of the whole command
  bool json;            // one JSON document on `out` instead of text for people
  std::ostream& out;
  Progress& progress;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_CONTEXT_H_

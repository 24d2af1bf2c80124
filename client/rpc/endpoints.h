// Where the servers of a job answer.
//
//   StatusOr<std::vector<std::string>> endpoints =
//       FindEndpoints({flag, getenv("SHERD_ENDPOINT"), runtime::kDefaultShmRoot});
//   JobClient client(*endpoints, {});
//
// An endpoint is "unix:PATH" (an absolute path) or "HOST:PORT". Any server of a job answers anything, so a
// list is tried in order. Errors are one line with the remedy. Calls block on the file system only;
// thread-safe.
#ifndef SHERD_CLIENT_RPC_ENDPOINTS_H_
#define SHERD_CLIENT_RPC_ENDPOINTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::rpc {

// The longest path that a unix socket can have, in bytes.
inline constexpr size_t kMaxSocketPath = 107;

// The file name of a server's socket in its job's directory ends in this.
inline constexpr char kSocketSuffix[] = ".sock";

// "unix:/run/a.sock,localhost:7000": at least one. INVALID_ARGUMENT names the entry that is none.
absl::StatusOr<std::vector<std::string>> ParseEndpoints(absl::string_view list);

// Sockets of the servers in a job's directory, s2 before s10. NOT_FOUND when there is none.
absl::StatusOr<std::vector<std::string>> JobEndpoints(const std::string& job_dir);

// What may name a job, best first. An empty string is not there.
struct EndpointSources {
  std::string flag;         // --endpoint
  std::string environment;  // SHERD_ENDPOINT
  std::string shm_root;     // else the only live job of this user under it
};

//   INVALID_ARGUMENT     the flag or the environment holds no endpoint
//   NOT_FOUND            no live job here
//   FAILED_PRECONDITION  several live jobs: lists their endpoints
absl::StatusOr<std::vector<std::string>> FindEndpoints(const EndpointSources& sources);

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_ENDPOINTS_H_

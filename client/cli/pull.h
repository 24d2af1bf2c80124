// `sherd pull`: the consolidated state of a running job, at one step, as files that other tools read
// (pull_plan.h).
#ifndef SHERD_CLIENT_CLI_PULL_H_
#define SHERD_CLIENT_CLI_PULL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/progress.h"
#include "client/cli/pull_files.h"
#include "client/rpc/job_client.h"
#include "proto/sherd/v1/common.pb.h"

namespace sherd::cli {

struct PullOptions {
  // A file; or, ending in '/' or being one, a folder (made if need be), which gets model.safetensors or
  // model.pt. With kDeepSpeed always a folder.
  std::string path;
  PullFormat format = PullFormat::kSafetensors;
  v1::DType dtype = v1::DTYPE_FLOAT32;  // of parameters; kDeepSpeed: fp32
  bool with_optimizer = false;          // kDeepSpeed: always
  uint64_t rate = 0;                    // bytes in a second; 0: no limit
  // More than this goes to several files with an index beside them. kSafetensors only.
  uint64_t max_shard_bytes = uint64_t{5} << 30;
};

struct PullResult {
  std::vector<std::string> files;  // or the folder of them; the index or the like last, if there is one
  uint64_t step = 0;
  uint64_t epoch = 0;
  uint64_t tensors = 0;
  uint64_t bytes = 0;  // of tensors
  int resumed = 0;     // times the stream went on after a break
  int restarted = 0;   // times it began anew because its snapshot was lost
  absl::Duration duration;
};

// Files appear whole, under their names, at the end; after an error nothing is there. A broken connection is
// resumed; a lost snapshot is replaced by a new one, twice. Errors of the calls, of files, DATA_LOSS. Blocks.
absl::StatusOr<PullResult> PullJob(rpc::JobClient& client, const PullOptions& options, absl::Time deadline,
                                   Progress& progress);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PULL_H_

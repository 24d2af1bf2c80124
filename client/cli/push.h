// `sherd push`: a consolidated state into a running job, all or nothing, between two steps.
#ifndef SHERD_CLIENT_CLI_PUSH_H_
#define SHERD_CLIENT_CLI_PUSH_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/consolidated.h"
#include "client/cli/progress.h"
#include "client/rpc/job_client.h"

namespace sherd::cli {

struct PushResult {
  uint64_t step = 0;  // the values are stored after its update
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  int skipped_buffers = 0;
  int missing = 0, left_over = 0;  // tensors that only the job, only the file has: of a partial push
  absl::Duration duration;
};

// `path`: whatever formats::Checkpoint opens: a file or folder as `sherd pull` writes them, Hugging Face's
// safetensors or pytorch_model.bin with or without an index, a state dict of torch.save, a universal folder
// of DeepSpeed's. Names, shapes and types are checked here before anything is sent (consolidated.h). Errors
// of that, of files, and of the call. Blocks.
absl::StatusOr<PushResult> PushJob(rpc::JobClient& client, const std::string& path, const PushChoice& choice,
                                   absl::Time deadline, Progress& progress);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PUSH_H_

// `sherd read`: a slice of one tensor in one plane of a running job, as a .npy file.
#ifndef SHERD_CLIENT_CLI_READ_H_
#define SHERD_CLIENT_CLI_READ_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/context.h"

namespace sherd::cli {

struct ReadOptions {
  std::string name;
  std::string plane;  // empty: "param"
  std::string slice;  // as in slice_spec.h; empty: whole
  std::string file;   // .npy
};

struct ReadResult {
  uint64_t step = 0;  // updates that the values contain
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// INVALID_ARGUMENT, OUT_OF_RANGE for the slice; NOT_FOUND; DATA_LOSS for damage; UNIMPLEMENTED for buffers
// that are not F32.
absl::StatusOr<ReadResult> ReadValues(rpc::JobClient& client, const ReadOptions& options,
                                      absl::Time deadline);

// Writes options.file and says so.
absl::Status ReadToFile(Context& context, const ReadOptions& options);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_READ_H_

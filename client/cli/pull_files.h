// What a pull is asked for, and which files come of it: the seam between formats (pull_plan.h) and the one
// who fetches the values and fills the files (pull_target.h). The stream of a pull is the data of all files,
// one after another.
#ifndef SHERD_CLIENT_CLI_PULL_FILES_H_
#define SHERD_CLIENT_CLI_PULL_FILES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/formats/tensor_writer.h"

namespace sherd::cli {

enum class PullFormat { kSafetensors, kTorch, kDeepSpeed };

// One file, and the values that are its data, in order.
struct PullFile {
  std::string name;  // within the pull's folder; may have folders in front
  std::vector<v1::TensorRef> refs;
  uint64_t data_bytes = 0;
  // Called once, when the stream is at the file's data or before. Errors of the writer's Create.
  std::function<absl::StatusOr<std::unique_ptr<formats::TensorWriter>>(const std::string& path)> create;
};

struct PullPlan {
  // Not empty: the files belong in a new folder of this name, which appears whole.
  std::string folder;
  std::vector<PullFile> files;
  // Written when all else is in its place: an index, the name of the latest tag. Empty: none.
  std::string last_name, last_bytes;

  uint64_t total_bytes() const {
    uint64_t sum = 0;
    for (const PullFile& file : files) sum += file.data_bytes;
    return sum;
  }
  uint64_t tensors() const {
    uint64_t sum = 0;
    for (const PullFile& file : files) sum += file.refs.size();
    return sum;
  }
};

struct PullWish {
  PullFormat format = PullFormat::kSafetensors;
  v1::DType dtype = v1::DTYPE_FLOAT32;  // of parameters
  bool with_optimizer = false;
  uint64_t max_file_bytes = 0;  // of safetensors
  std::string stem;             // of the files' names; not of deepspeed's
  // Of the snapshot.
  uint64_t step = 0, epoch = 0, layout_hash = 0;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PULL_FILES_H_

// A checkpoint as people have it: a single `model.safetensors`, or shards `model-00001-of-00003.safetensors`
// with `model.safetensors.index.json`, which says what tensor is in which file; the same of torch.save's
// files (`pytorch_model.bin`, `pytorch_model.bin.index.json`); a .pt file; a folder of DeepSpeed's universal
// form. Safetensors are written too; the others read.
//
//   auto checkpoint = Checkpoint::Open("llama/");            // a folder, an index, or one file
//   for (const CheckpointTensor& t : (*checkpoint)->tensors()) ...
//
//   auto split = SplitPlan(specs, int64_t{5} << 30, "model", {});
//   // write every split->files[i] with a SafetensorsWriter, then, last:
//   if (split->is_sharded()) WriteWhole("out/" + split->index_name(), *SerializeIndex(IndexOf(*split)));
#ifndef SHERD_RUNTIME_FORMATS_CHECKPOINT_H_
#define SHERD_RUNTIME_FORMATS_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/formats/safetensors_header.h"
#include "runtime/formats/tensor_reader.h"

namespace sherd::formats {

// One file of a checkpoint to be written.
struct PlannedFile {
  std::string name;  // without directory
  FilePlan plan;
};

// A checkpoint to be written. Several files need an index, one has none.
struct CheckpointPlan {
  std::string stem;
  std::vector<PlannedFile> files;
  uint64_t total_bytes = 0;  // of tensors
  bool is_sharded() const { return files.size() > 1; }
  std::string index_name() const { return stem + ".safetensors.index.json"; }
};

// Fills files with the tensors in the order given, so that layers stay together, without passing
// `max_file_bytes` (a tensor larger than that gets a file to itself) or the header size common readers
// accept. One file is called
// `<stem>.safetensors`, several `<stem>-00001-of-0000N.safetensors`; each carries `metadata`.
// INVALID_ARGUMENT if max_file_bytes is 0, the stem is empty or has a slash, a name is there twice, and as
// LayOut.
absl::StatusOr<CheckpointPlan> SplitPlan(const std::vector<TensorSpec>& tensors, uint64_t max_file_bytes,
                                         absl::string_view stem, const Metadata& metadata);

// File name -> what an index file says.
struct IndexFile {
  uint64_t total_bytes = 0;                       // as stated; 0 if it is not, or not as an integer
  std::map<std::string, std::string> weight_map;  // tensor -> file name without directory
};

// INVALID_ARGUMENT for malformed JSON, a tensor listed twice, a weight_map that is missing or no map of
// strings, and a file name with a slash (an index must not reach outside its folder).
absl::StatusOr<IndexFile> ParseIndex(absl::string_view json);
// INVALID_ARGUMENT if a name is not UTF-8.
absl::StatusOr<std::string> SerializeIndex(const IndexFile& index);

// What belongs into plan.index_name(), beside the files: to be written after every file was committed, so
// that whoever finds an index finds what it lists.
IndexFile IndexOf(const CheckpointPlan& plan);

// A tensor of a checkpoint and the file that holds it.
struct CheckpointTensor {
  const TensorEntry* entry = nullptr;  // lives as long as the Checkpoint
  size_t file = 0;                     // index into Checkpoint::files()
};

// An opened checkpoint, checked as a whole. Immutable: thread-safe. Holds a descriptor per file.
class Checkpoint {
 public:
  // `path` is a folder with model.safetensors.index.json, model.safetensors, pytorch_model.bin.index.json,
  // pytorch_model.bin (the first two win over the others), or one of DeepSpeed's universal form
  // (universal_folder.h); an index (*.json); or a single file, whose first bytes tell its format. Errors,
  // naming file and tensor: FileError's; NOT_FOUND if the folder holds none of them, a shard is missing, or a
  // listed tensor is not in its file; FAILED_PRECONDITION if it holds an index and a single file;
  // INVALID_ARGUMENT for malformed files, a tensor in two files, and one that no index lists.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  // Whether a folder holds something that Open opens.
  static bool Is(const std::string& folder);

  // By name.
  const std::vector<CheckpointTensor>& tensors() const { return tensors_; }
  const std::vector<std::unique_ptr<TensorReader>>& files() const { return files_; }
  uint64_t total_bytes() const { return total_bytes_; }

  // nullptr if there is no such tensor.
  const CheckpointTensor* Find(absl::string_view name) const;
  // As TensorReader::Read.
  absl::Status Read(absl::string_view name, uint64_t offset, absl::Span<char> out) const;

 private:
  explicit Checkpoint(std::string path) : path_(std::move(path)) {}

  absl::Status OpenFolder(const std::string& path);
  absl::Status OpenFile(const std::string& path);
  absl::Status OpenIndex(const std::string& path);
  absl::Status Collect();

  const std::string path_;
  std::vector<std::unique_ptr<TensorReader>> files_;
  std::vector<CheckpointTensor> tensors_;
  absl::flat_hash_map<absl::string_view, size_t> by_name_;  // index into tensors_
  uint64_t total_bytes_ = 0;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_CHECKPOINT_H_

// Folders of DeepSpeed's universal checkpoints, as ds_to_universal.py and `sherd pull --format deepspeed`
// write them, seen as named tensors:
//
//   <tag>/zero/<parameter>/fp32.pt                     "<parameter>"
//   <tag>/zero/<parameter>/exp_avg.pt, ...             "exp_avg/<parameter>"
//   <tag>/zero/<parameter>/step.pt                     "step/<parameter>", one fp32 number
//   <tag>/mp_rank_00_model_states.pt, ["module"]       frozen parameters and buffers, optional
//
//   auto folder = UniversalFolder::Open("run/global_step100_universal");
//
// A .pt file holds {"param": tensor, ...} (stages 1 and 2), a tensor of one dimension (stage 3, whose step
// count stands in zero/optimizer_state.pt), or a number (step.pt). After
// deepspeed/checkpoint/ds_to_universal.py and deepspeed/checkpoint/universal_checkpoint.py, versions 0.14 to
// 0.19. Nothing is executed (torch_file.h).
#ifndef SHERD_RUNTIME_FORMATS_UNIVERSAL_FOLDER_H_
#define SHERD_RUNTIME_FORMATS_UNIVERSAL_FOLDER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "runtime/formats/tensor_reader.h"
#include "runtime/formats/torch_file.h"
#include "runtime/mutex.h"

namespace sherd::formats {

// Thread-safe. Files are opened to be checked and again to be read: one descriptor at a time.
class UniversalFolder : public TensorReader {
 public:
  // `path` is the folder of a tag, or the one above, whose latest_universal names a tag. Errors, naming the
  // file: FileError's; NOT_FOUND without zero/ or a parameter's fp32.pt; INVALID_ARGUMENT for malformed files
  // and a tag that is no plain name.
  static absl::StatusOr<std::unique_ptr<UniversalFolder>> Open(const std::string& path);
  // Whether a folder is to be opened as one.
  static bool Is(const std::string& path);

  const std::string& path() const override { return path_; }
  // Parameters by name, each with its planes; what is optional comes last.
  const std::vector<TensorEntry>& tensors() const override { return entries_; }

 protected:
  absl::Status ReadWithin(const TensorEntry& tensor, uint64_t offset, absl::Span<char> out) const override;

 private:
  struct Place {
    std::string file;  // empty: `value` is all of it
    std::string key;   // in the file's "module"; empty: the file's own tensor
    float value = 0;
  };
  explicit UniversalFolder(std::string path) : path_(std::move(path)) {}

  absl::Status Load();
  absl::Status AddParameter(const std::string& name, const std::vector<std::string>& files);
  absl::Status AddTensor(const std::string& name, const std::string& file);
  void AddNumber(const std::string& name, float value);
  absl::Status AddSharedStep(const std::vector<std::string>& names);
  absl::Status AddModule();
  absl::StatusOr<std::shared_ptr<const TorchFile>> Opened(const std::string& file) const;

  const std::string path_;  // of the tag's folder
  std::vector<TensorEntry> entries_;
  std::vector<Place> places_;  // of entries_
  mutable runtime::Mutex mutex_;
  mutable std::shared_ptr<const TorchFile> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_UNIVERSAL_FOLDER_H_

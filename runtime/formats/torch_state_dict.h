// The named tensors of a torch.save file: a state dict, or a checkpoint that holds one.
//
//   auto weights = TorchStateDict::Open("pytorch_model.bin");
//
// What the file holds is taken for
//   {name: tensor, ...}       a state dict;
//   {"model": {name: tensor}, "optimizer": {plane: {name: tensor}}, ...}
//                             what `sherd pull --format pt --with-optimizer` writes: plane "exp_avg" of "wte"
//                             is called "exp_avg/wte" here;
//   {"model" | "state_dict" | "model_state_dict" | "module": {name: tensor}, ...}
//                             the weights alone: PyTorch numbers optimizer states and does not name them.
#ifndef SHERD_RUNTIME_FORMATS_TORCH_STATE_DICT_H_
#define SHERD_RUNTIME_FORMATS_TORCH_STATE_DICT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/formats/tensor_reader.h"
#include "runtime/formats/torch_file.h"

namespace sherd::formats {

// Thread-safe. Holds one descriptor.
class TorchStateDict : public TensorReader {
 public:
  // Errors as TorchFile::Open; INVALID_ARGUMENT, naming the key, for a value that is neither a tensor nor
  // None.
  static absl::StatusOr<std::unique_ptr<TorchStateDict>> Open(const std::string& path);

  const std::string& path() const override { return file_->path(); }
  // In the order of the file.
  const std::vector<TensorEntry>& tensors() const override { return entries_; }

 protected:
  absl::Status ReadWithin(const TensorEntry& tensor, uint64_t offset, absl::Span<char> out) const override;

 private:
  explicit TorchStateDict(std::unique_ptr<TorchFile> file) : file_(std::move(file)) {}
  absl::Status Load();
  absl::Status Add(const std::string& prefix, const PickleDocument::Node& dict);
  absl::Status AddOptimizer(const PickleDocument::Node& dict);

  const std::unique_ptr<TorchFile> file_;
  std::vector<TensorEntry> entries_;
  std::vector<TorchTensor> places_;  // of entries_
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TORCH_STATE_DICT_H_

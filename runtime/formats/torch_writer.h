// Writes files that torch.load reads, with weights_only=True and mmap=True: plain values and tensors, each
// with a storage of its own.
//
//   TorchTree tree;
//   tree.pickle().BeginDict();
//   tree.pickle().String("wte");  tree.Tensor(StoredType::kF32, {50257, 768});
//   tree.pickle().EndDict();
//   absl::StatusOr<TorchPlan> plan = std::move(tree).LayOut();
//   auto writer = TorchWriter::Create("model.pt", *plan);
//   (*writer)->WriteData(0, bytes);   // of the tensors in the order of the tree, in one stream
//   (*writer)->Commit();
//
// What comes out is as torch.save writes it (torch_file.h says where that is described); storages lie at
// multiples of 64 bytes.
#ifndef SHERD_RUNTIME_FORMATS_TORCH_WRITER_H_
#define SHERD_RUNTIME_FORMATS_TORCH_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/pickle_writer.h"
#include "runtime/formats/stored_type.h"
#include "runtime/formats/tensor_writer.h"
#include "runtime/formats/zip_layout.h"

namespace sherd::formats {

// A file to be written: all of it but the tensors' bytes.
struct TorchPlan {
  std::string pickle;
  ZipLayout layout;
  size_t first_storage = 0;  // in layout.entries(); the others follow it
  size_t storages = 0;
  uint64_t data_bytes = 0;  // of tensors
};

// Thread-compatible.
class TorchTree {
 public:
  // For everything that is no tensor.
  PickleWriter& pickle() { return pickle_; }

  // A value: a contiguous tensor. Its bytes come behind those of the tensors before it.
  void Tensor(StoredType dtype, const std::vector<int64_t>& shape);

  // INVALID_ARGUMENT for a dtype that torch has no storage class for, and for shapes, as BytesOf. REQUIRES
  // that one value was written.
  absl::StatusOr<TorchPlan> LayOut() &&;

 private:
  PickleWriter pickle_;
  std::vector<uint64_t> storages_;  // bytes
  absl::Status status_;             // the first error
};

// Thread-compatible.
class TorchWriter : public TensorWriter {
 public:
  // Reserves the file's space. Errors as AtomicFile::Create.
  static absl::StatusOr<std::unique_ptr<TorchWriter>> Create(const std::string& path, TorchPlan plan);

  // INVALID_ARGUMENT for bytes that are not the next.
  absl::Status WriteData(uint64_t offset, absl::string_view bytes) override;
  absl::Status Commit() override;

 private:
  TorchWriter(std::unique_ptr<AtomicFile> file, TorchPlan plan);
  absl::Status WriteSmall(size_t entry, absl::string_view bytes);
  // Moves on past storages that are whole.
  void SkipFull();

  const std::unique_ptr<AtomicFile> file_;
  const TorchPlan plan_;
  std::vector<uint32_t> crcs_;  // of the layout's entries
  uint64_t done_ = 0;           // bytes of tensors
  size_t entry_;                // that takes the next of them
  uint64_t in_entry_ = 0;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TORCH_WRITER_H_

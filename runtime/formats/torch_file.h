// Files that torch.save wrote (PyTorch 1.6 and later): a zip of one pickle and the bytes of each storage.
// Nothing in them is executed; classes and functions that tensors do not need are refused (pickle_reader.h).
//
//   auto file = TorchFile::Open("exp_avg.pt", {});
//   absl::StatusOr<TorchTensor> t = (*file)->Tensor((*file)->document().root());
//   std::vector<char> bytes(t->bytes);
//   (*file)->Read(*t, 0, absl::MakeSpan(bytes));
//
// The layout is that of torch/serialization.py (_save) and caffe2/serialize/inline_container.h:
// `<root>/data.pkl`, `<root>/data/<key>` for each storage, `<root>/version`, `<root>/byteorder`.
#ifndef SHERD_RUNTIME_FORMATS_TORCH_FILE_H_
#define SHERD_RUNTIME_FORMATS_TORCH_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/formats/pickle_reader.h"
#include "runtime/formats/stored_type.h"
#include "runtime/formats/zip_reader.h"
#include "runtime/mutex.h"

namespace sherd::formats {

// A tensor in a file, checked: every element lies within its storage, the storage has the bytes it states.
struct TorchTensor {
  StoredType dtype = StoredType::kF32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements, >= 0
  uint64_t offset = 0;           // of its first element in the storage, in elements
  uint64_t bytes = 0;            // of its elements, row-major
  bool contiguous = true;
  const ZipReader::Entry* storage = nullptr;  // lives as long as the file
};

// Thread-safe.
class TorchFile {
 public:
  // A tensor whose elements do not lie in a row is read whole and put in order; a larger one is refused.
  static constexpr uint64_t kMaxScattered = uint64_t{4} << 30;

  // `options.keep_unknown`: for files that hold more than tensors, when only tensors are wanted. FileError's;
  // INVALID_ARGUMENT "<path>: ..." for everything malformed or refused; DATA_LOSS for a damaged pickle.
  static absl::StatusOr<std::unique_ptr<TorchFile>> Open(const std::string& path,
                                                         const PickleDocument::Options& options);
  // Whether a file begins as torch.save's do: as a zip, or as its older form, which Open refuses by name.
  static bool Begins(absl::string_view first_bytes);

  const std::string& path() const { return zip_->path(); }
  const PickleDocument& document() const { return *document_; }

  bool IsTensor(const PickleDocument::Node& node) const;
  // INVALID_ARGUMENT if it is none, or a malformed one.
  absl::StatusOr<TorchTensor> Tensor(const PickleDocument::Node& node) const;

  // Fills `out` with elements in row-major order, from byte `offset` of them on. Who reads a storage from its
  // first byte to its last, in order, also gets its checksum checked: DATA_LOSS. OUT_OF_RANGE;
  // RESOURCE_EXHAUSTED past kMaxScattered; else as ZipReader::Read. Blocks.
  absl::Status Read(const TorchTensor& tensor, uint64_t offset, absl::Span<char> out) const;

 private:
  // How far a storage was read in order, and the checksum so far.
  struct Progress {
    uint64_t next = 0;
    uint32_t crc = 0;
  };
  // The last tensor that was put in order.
  struct Ordered {
    TorchTensor tensor;
    std::string bytes;
  };
  explicit TorchFile(std::unique_ptr<ZipReader> zip) : zip_(std::move(zip)) {}

  absl::Status Load(const PickleDocument::Options& options);
  absl::Status Bad(absl::string_view why) const;
  const PickleDocument::Node* Unwrap(const PickleDocument::Node* node) const;
  absl::StatusOr<std::vector<int64_t>> Dimensions(const PickleDocument::Node& node) const;
  absl::Status FindStorage(const PickleDocument::Node& node, const PickleDocument::Node* dtype,
                           TorchTensor* out) const;
  absl::Status CheckElements(TorchTensor* tensor) const;
  absl::Status CheckSum(const ZipReader::Entry& storage, uint64_t offset, absl::string_view bytes) const;
  absl::StatusOr<std::string> PutInOrder(const TorchTensor& tensor) const;

  const std::unique_ptr<ZipReader> zip_;      // self-synchronised
  std::unique_ptr<PickleDocument> document_;  // constant after Open
  std::string root_;                          // likewise; "archive"
  mutable runtime::Mutex mutex_;
  mutable std::map<const ZipReader::Entry*, Progress> progress_ ABSL_GUARDED_BY(mutex_);
  mutable std::shared_ptr<const Ordered> ordered_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TORCH_FILE_H_

// A file, or a folder of them, seen as named tensors: what is the same for every format.
//
//   for (const TensorEntry& t : reader.tensors()) ...
//   std::vector<char> bytes(reader.Find("wte")->bytes());
//   reader.Read("wte", 0, absl::MakeSpan(bytes));
//
// Implementations are immutable once opened: thread-safe.
#ifndef SHERD_RUNTIME_FORMATS_TENSOR_READER_H_
#define SHERD_RUNTIME_FORMATS_TENSOR_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/formats/tensor_entry.h"

namespace sherd::formats {

class TensorReader {
 public:
  virtual ~TensorReader() = default;

  virtual const std::string& path() const = 0;
  virtual const std::vector<TensorEntry>& tensors() const = 0;

  // nullptr if there is no such tensor. Valid as long as the reader.
  const TensorEntry* Find(absl::string_view name) const;

  // Fills `out` with the tensor's bytes, row-major and little-endian, from `offset` (in bytes, within the
  // tensor). NOT_FOUND; OUT_OF_RANGE past the tensor's end; DATA_LOSS if the file was cut since it was opened
  // or is damaged; else FileError. Blocks.
  absl::Status Read(absl::string_view name, uint64_t offset, absl::Span<char> out) const;

 protected:
  // Once, when tensors() has its final value. False, and the name, if one is there twice.
  bool IndexNames(std::string* twice);

  // Read, of an entry of tensors() and within it.
  virtual absl::Status ReadWithin(const TensorEntry& tensor, uint64_t offset, absl::Span<char> out) const = 0;

 private:
  absl::flat_hash_map<absl::string_view, const TensorEntry*> by_name_;
};

// OUT_OF_RANGE naming file and tensor unless `bytes` from `offset` lie within it.
absl::Status CheckWithin(const TensorEntry& tensor, uint64_t offset, uint64_t bytes, absl::string_view path);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TENSOR_READER_H_

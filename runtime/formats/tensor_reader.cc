#include "runtime/formats/tensor_reader.h"

#include "absl/strings/str_cat.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {

absl::Status CheckWithin(const TensorEntry& tensor, uint64_t offset, uint64_t bytes, absl::string_view path) {
  if (offset <= tensor.bytes() && bytes <= tensor.bytes() - offset) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(path, ": ", bytes, " bytes at ", offset,
                                            " pass the end of tensor ", Quoted(tensor.name), " of ",
                                            tensor.bytes(), " bytes"));
}

bool TensorReader::IndexNames(std::string* twice) {
  by_name_.reserve(tensors().size());
  for (const TensorEntry& tensor : tensors()) {
    if (by_name_.emplace(tensor.name, &tensor).second) continue;
    *twice = tensor.name;
    return false;
  }
  return true;
}

const TensorEntry* TensorReader::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

absl::Status TensorReader::Read(absl::string_view name, uint64_t offset, absl::Span<char> out) const {
  const TensorEntry* tensor = Find(name);
  if (tensor == nullptr) return absl::NotFoundError(absl::StrCat(path(), ": no tensor ", Quoted(name)));
  if (absl::Status s = CheckWithin(*tensor, offset, out.size(), path()); !s.ok()) return s;
  return ReadWithin(*tensor, offset, out);
}

}  // namespace sherd::formats

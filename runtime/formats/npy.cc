#include "runtime/formats/npy.h"

#include <cstring>
#include <limits>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/safetensors_header.h"

namespace sherd::formats {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY\x01\x00", 8);
constexpr size_t kFixedBytes = 10;  // magic, version, length of the text
constexpr size_t kAlignment = 64;

// Takes `text` from the front of `rest`, with the spaces after it.
bool Take(absl::string_view text, absl::string_view* rest) {
  if (!absl::ConsumePrefix(rest, text)) return false;
  *rest = absl::StripLeadingAsciiWhitespace(*rest);
  return true;
}

// The inside of a Python tuple of integers: "", "3,", "3, 4".
bool ParseTuple(absl::string_view inside, std::vector<int64_t>* shape) {
  if (inside.empty()) return true;
  // (3) is an integer to Python, not a tuple.
  if (!absl::StrContains(inside, ',')) return false;
  absl::ConsumeSuffix(&inside, ",");
  for (absl::string_view item : absl::StrSplit(inside, ',')) {
    item = absl::StripAsciiWhitespace(item);
    int64_t dimension = 0;
    if (item.empty() || item.find_first_not_of("0123456789") != item.npos ||
        !absl::SimpleAtoi(item, &dimension)) {
      return false;
    }
    shape->push_back(dimension);
  }
  return true;
}

// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } with NumPy's own order of keys, which it always
// writes.
bool ParseDictionary(absl::string_view text, std::vector<int64_t>* shape) {
  if (!Take("{", &text) || !Take("'descr':", &text) || !Take("'<f4'", &text) || !Take(",", &text) ||
      !Take("'fortran_order':", &text) || !Take("False", &text) || !Take(",", &text) ||
      !Take("'shape':", &text) || !Take("(", &text)) {
    return false;
  }
  const size_t close = text.find(')');
  if (close == text.npos || !ParseTuple(text.substr(0, close), shape)) return false;
  text.remove_prefix(close);
  Take(")", &text);
  Take(",", &text);
  return Take("}", &text) && text.empty();
}

}  // namespace

absl::StatusOr<std::string> NpyHeader(const std::vector<int64_t>& shape) {
  if (absl::StatusOr<uint64_t> bytes = BytesOf(StoredType::kF32, shape); !bytes.ok()) return bytes.status();
  std::string header(kMagic);
  header.resize(kFixedBytes);
  absl::StrAppend(&header, "{'descr': '<f4', 'fortran_order': False, 'shape': (", absl::StrJoin(shape, ", "),
                  shape.size() == 1 ? ",), }" : "), }");
  header.resize((header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment - 1, ' ');
  header.push_back('\n');
  const size_t length = header.size() - kFixedBytes;
  if (length > std::numeric_limits<uint16_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(shape.size(), " dimensions are too many for a .npy file"));
  }
  header[8] = static_cast<char>(length & 0xFF);
  header[9] = static_cast<char>(length >> 8);
  return header;
}

absl::Status WriteNpy(const std::string& path, absl::Span<const float> values,
                      const std::vector<int64_t>& shape) {
  const absl::StatusOr<std::string> header = NpyHeader(shape);
  if (!header.ok()) return header.status();
  const absl::string_view bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  if (*BytesOf(StoredType::kF32, shape) != bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", values.size(), " values do not fill shape (",
                                                   absl::StrJoin(shape, ", "), ")"));
  }
  absl::StatusOr<std::unique_ptr<AtomicFile>> file =
      AtomicFile::Create(path, header->size() + bytes.size(), {});
  if (!file.ok()) return file.status();
  absl::Status status = (*file)->WriteAt(0, *header);
  if (status.ok()) status = (*file)->WriteAt(header->size(), bytes);
  return status.ok() ? (*file)->Commit() : status;
}

absl::StatusOr<NpyArray> ReadNpy(const std::string& path) {
  const auto malformed = [&path](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  const absl::StatusOr<std::string> file = ReadWhole(path, std::numeric_limits<int64_t>::max());
  if (!file.ok()) return file.status();
  absl::string_view rest = *file;
  if (rest.size() < kFixedBytes || !absl::StartsWith(rest, kMagic))
    return malformed("not a .npy file of version 1.0");
  const size_t length = static_cast<unsigned char>(rest[8]) | static_cast<unsigned char>(rest[9]) << 8;
  rest.remove_prefix(kFixedBytes);
  if (length > rest.size()) return malformed("header reaches past the end of the file");
  NpyArray array;
  if (!ParseDictionary(absl::StripTrailingAsciiWhitespace(rest.substr(0, length)), &array.shape)) {
    return malformed("not a row-major array of '<f4', or its header is malformed");
  }
  rest.remove_prefix(length);
  const absl::StatusOr<uint64_t> bytes = BytesOf(StoredType::kF32, array.shape);
  if (!bytes.ok()) return malformed(bytes.status().message());
  if (*bytes != rest.size()) {
    return malformed(absl::StrCat(rest.size(), " bytes of values where its shape takes ", *bytes));
  }
  array.values.resize(rest.size() / sizeof(float));
  if (!rest.empty()) std::memcpy(array.values.data(), rest.data(), rest.size());
  return array;
}

}  // namespace sherd::formats

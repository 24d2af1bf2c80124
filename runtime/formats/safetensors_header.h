// The head of a safetensors file: which tensors it holds, of what type and shape, and where. Pure functions
// on bytes; safetensors_file.h reads and writes files with them.
//
//   absl::StatusOr<FilePlan> plan = LayOut({{"wte", StoredType::kF32, {50257, 768}}}, {{"step", "17"}});
//   plan->header_bytes;                    // the first bytes of the file
//   plan->header.tensors[0].begin;         // offset in the data that follows them
//
// A file is: 8 bytes little-endian N, N bytes of JSON (the header), the data. Tensors are row-major and
// little-endian, cover the data without holes and overlaps, and have no strides.
// All sizes and offsets are in bytes; offsets count from the data's first byte. Every function is
// thread-safe.
#ifndef SHERD_RUNTIME_FORMATS_SAFETENSORS_HEADER_H_
#define SHERD_RUNTIME_FORMATS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/formats/stored_type.h"
#include "runtime/formats/tensor_entry.h"

namespace sherd::formats {

// What the format itself allows for N, and what readers in the field accept. We read the one, write the
// other.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxWrittenHeaderBytes = 25'000'000;
// The 8 bytes in front of the header that hold N.
inline constexpr uint64_t kPrefixBytes = 8;

using Metadata = std::map<std::string, std::string>;

// Invariant of a parsed or laid out header: tensors ascend by (begin, end), the first begins at 0, each
// begins where the one before ends, names are unique.
struct Header {
  std::vector<TensorEntry> tensors;
  Metadata metadata;
  uint64_t data_begin = 0;  // in the file: kPrefixBytes + N
  uint64_t data_bytes = 0;
  uint64_t file_bytes() const { return data_begin + data_bytes; }
};

// A file that is to be written: `header_bytes` (prefix, JSON, padding), then header.data_bytes of data.
struct FilePlan {
  Header header;
  std::string header_bytes;
};

// N, from the first bytes of a file of `file_bytes`. INVALID_ARGUMENT if `prefix` holds fewer than 8 bytes, N
// is 0, over kMaxHeaderBytes, or reaches past the file: check before allocating N bytes.
absl::StatusOr<uint64_t> ParseHeaderSize(absl::string_view prefix, uint64_t file_bytes);

// Reads a header: `json` is the N bytes behind the prefix, `file_bytes` the size of the whole file.
// INVALID_ARGUMENT naming tensor and value for everything that is malformed, down to a hole of one byte
// between tensors. Unsorted entries, unknown fields of a tensor and unaligned data are legal. Memory: a small
// multiple of `json`.
absl::StatusOr<Header> Parse(absl::string_view json, uint64_t file_bytes);

// Writes a header: prefix, compact JSON in the order given, spaces up to a multiple of 8. "format":"pt" joins
// the metadata unless it has a "format". INVALID_ARGUMENT for a name that is empty, reserved, twice there or
// not UTF-8; RESOURCE_EXHAUSTED if N would pass kMaxWrittenHeaderBytes. Offsets are taken as they are.
absl::StatusOr<std::string> Serialize(const std::vector<TensorEntry>& tensors, const Metadata& metadata);

// Gives each tensor its place: by size of element descending (which keeps every tensor aligned), then by
// name. Errors as BytesOf and Serialize, naming the tensor.
absl::StatusOr<FilePlan> LayOut(std::vector<TensorSpec> tensors, const Metadata& metadata);

// The plan of a file whose head was received from elsewhere: `head` is prefix and header, `file_bytes` the
// size the sender states. Errors as ParseHeaderSize and Parse, and INVALID_ARGUMENT if `head` is not exactly
// 8 + N bytes.
absl::StatusOr<FilePlan> PlanFromHead(std::string head, uint64_t file_bytes);

// At most these many bytes of header for one tensor, wherever it is placed; `Serialize` of k tensors stays
// within the sum of theirs plus HeaderBound(metadata). INVALID_ARGUMENT if a name is not UTF-8.
absl::StatusOr<uint64_t> HeaderBound(const TensorSpec& tensor);
absl::StatusOr<uint64_t> HeaderBound(const Metadata& metadata);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_SAFETENSORS_HEADER_H_

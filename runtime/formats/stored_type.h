// The element types of safetensors files: their names, sizes, and which of them are Sherd's.
#ifndef SHERD_RUNTIME_FORMATS_STORED_TYPE_H_
#define SHERD_RUNTIME_FORMATS_STORED_TYPE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/types.h"

namespace sherd::formats {

// Element types of the format, all of them; Sherd's own planes use three.
enum class StoredType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
};

// "F32", "BF16", ...: as in the file.
absl::string_view Name(StoredType type);
// Bytes of one element.
uint64_t SizeOf(StoredType type);
StoredType ToStored(DType dtype);
// INVALID_ARGUMENT with the name and the known ones.
absl::StatusOr<StoredType> StoredTypeFromName(absl::string_view name);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_STORED_TYPE_H_

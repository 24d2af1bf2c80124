#include "runtime/formats/stored_type.h"

#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {
namespace {

struct TypeInfo {
  StoredType type;
  absl::string_view name;
  uint64_t size;
};

// In the order of the enumeration.
constexpr std::array<TypeInfo, 15> kTypes = {{
    {StoredType::kBool, "BOOL", 1},
    {StoredType::kU8, "U8", 1},
    {StoredType::kI8, "I8", 1},
    {StoredType::kF8E5M2, "F8_E5M2", 1},
    {StoredType::kF8E4M3, "F8_E4M3", 1},
    {StoredType::kI16, "I16", 2},
    {StoredType::kU16, "U16", 2},
    {StoredType::kF16, "F16", 2},
    {StoredType::kBF16, "BF16", 2},
    {StoredType::kI32, "I32", 4},
    {StoredType::kU32, "U32", 4},
    {StoredType::kF32, "F32", 4},
    {StoredType::kI64, "I64", 8},
    {StoredType::kU64, "U64", 8},
    {StoredType::kF64, "F64", 8},
}};

const TypeInfo& Info(StoredType type) { return kTypes[static_cast<size_t>(type)]; }

}  // namespace

absl::string_view Name(StoredType type) { return Info(type).name; }

uint64_t SizeOf(StoredType type) { return Info(type).size; }

StoredType ToStored(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return StoredType::kBF16;
    case DType::kFloat16:
      return StoredType::kF16;
    case DType::kFloat32:
      break;
  }
  return StoredType::kF32;
}

absl::StatusOr<StoredType> StoredTypeFromName(absl::string_view name) {
  for (const TypeInfo& info : kTypes) {
    if (info.name == name) return info.type;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown dtype ", Quoted(name), ": must be one of ",
      absl::StrJoin(kTypes, " ", [](std::string* out, const TypeInfo& t) { absl::StrAppend(out, t.name); })));
}

}  // namespace sherd::formats

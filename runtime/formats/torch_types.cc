#include "runtime/formats/torch_types.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace sherd::formats {
namespace {

struct Names {
  StoredType type;
  absl::string_view storage;  // of module torch; empty: none
  absl::string_view dtype;    // likewise
};

constexpr Names kNames[] = {
    {StoredType::kBool, "BoolStorage", "bool"},
    {StoredType::kU8, "ByteStorage", "uint8"},
    {StoredType::kI8, "CharStorage", "int8"},
    {StoredType::kI16, "ShortStorage", "int16"},
    {StoredType::kI32, "IntStorage", "int32"},
    {StoredType::kI64, "LongStorage", "int64"},
    {StoredType::kF16, "HalfStorage", "float16"},
    {StoredType::kBF16, "BFloat16Storage", "bfloat16"},
    {StoredType::kF32, "FloatStorage", "float32"},
    {StoredType::kF64, "DoubleStorage", "float64"},
    {StoredType::kU16, "", "uint16"},
    {StoredType::kU32, "", "uint32"},
    {StoredType::kU64, "", "uint64"},
    {StoredType::kF8E4M3, "", "float8_e4m3fn"},
    {StoredType::kF8E5M2, "", "float8_e5m2"},
};

constexpr absl::string_view kFunctions[] = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
};

constexpr absl::string_view kModule = "torch.";

}  // namespace

absl::string_view TorchStorageClass(StoredType type) {
  for (const Names& names : kNames) {
    if (names.type == type) return names.storage;
  }
  return "";
}

std::optional<StoredType> TypeOfTorchStorage(absl::string_view global) {
  if (!absl::ConsumePrefix(&global, kModule) || global.empty()) return std::nullopt;
  for (const Names& names : kNames) {
    if (names.storage == global) return names.type;
  }
  return std::nullopt;
}

std::optional<StoredType> TypeOfTorchDtype(absl::string_view global) {
  if (!absl::ConsumePrefix(&global, kModule)) return std::nullopt;
  for (const Names& names : kNames) {
    if (names.dtype == global) return names.type;
  }
  return std::nullopt;
}

absl::Span<const absl::string_view> TorchGlobals() {
  // Never destroyed, so that threads that outlive main() may use them.
  static const auto* const strings = [] {
    auto* all = new std::vector<std::string>;
    for (const Names& names : kNames) {
      if (!names.storage.empty()) all->push_back(absl::StrCat(kModule, names.storage));
      all->push_back(absl::StrCat(kModule, names.dtype));
    }
    return all;
  }();
  static const auto* const globals = [] {
    auto* all = new std::vector<absl::string_view>(strings->begin(), strings->end());
    all->insert(all->end(), std::begin(kFunctions), std::end(kFunctions));
    all->insert(all->end(), std::begin(kTorchUntypedStorages), std::end(kTorchUntypedStorages));
    return all;
  }();
  return *globals;
}

}  // namespace sherd::formats

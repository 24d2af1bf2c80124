// How PyTorch's serialisation names element types: by a storage class, or (types newer than those) by dtype.
// After torch/storage.py (_dtype_to_storage_type_map) and torch/_utils.py (_rebuild_tensor_v3). Pure.
#ifndef SHERD_RUNTIME_FORMATS_TORCH_TYPES_H_
#define SHERD_RUNTIME_FORMATS_TORCH_TYPES_H_

#include <optional>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/formats/stored_type.h"

namespace sherd::formats {

inline constexpr absl::string_view kTorchUntypedStorages[] = {"torch.storage.UntypedStorage",
                                                              "torch.UntypedStorage"};

// "FloatStorage" (of module torch) for F32; empty for a type without a storage class.
absl::string_view TorchStorageClass(StoredType type);
// Of "torch.FloatStorage"; none for another name.
std::optional<StoredType> TypeOfTorchStorage(absl::string_view global);
// Of "torch.float32"; none for another name, as types that Sherd does not know.
std::optional<StoredType> TypeOfTorchDtype(absl::string_view global);

// Every class and function that files of tensors need, as "module.name": containers, the functions that make
// a tensor of a storage, storages, dtypes. For PickleDocument::Parse.
absl::Span<const absl::string_view> TorchGlobals();

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TORCH_TYPES_H_

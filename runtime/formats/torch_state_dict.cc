#include "runtime/formats/torch_state_dict.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/utf8.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {

using Kind = PickleDocument::Kind;
using Node = PickleDocument::Node;

namespace {

constexpr absl::string_view kWeights[] = {"model", "state_dict", "model_state_dict", "module"};

}  // namespace

absl::StatusOr<std::unique_ptr<TorchStateDict>> TorchStateDict::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<TorchFile>> file = TorchFile::Open(path, {});
  if (!file.ok()) return file.status();
  std::unique_ptr<TorchStateDict> dict(new TorchStateDict(*std::move(file)));
  absl::Status status = dict->Load();
  std::string twice;
  if (status.ok() && !dict->IndexNames(&twice)) {
    status = absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(twice), " is there twice"));
  }
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  return dict;
}

absl::Status TorchStateDict::Load() {
  const PickleDocument& document = file_->document();
  const Node& root = document.root();
  if (root.kind != Kind::kDict) {
    return absl::InvalidArgumentError(
        absl::StrCat("it holds ", document.Describe(root), " and no state dict"));
  }
  for (const absl::string_view key : kWeights) {
    const Node* weights = document.Find(root, key);
    if (weights == nullptr || weights->kind != Kind::kDict) continue;
    if (absl::Status s = Add("", *weights); !s.ok()) return s;
    const Node* optimizer = document.Find(root, "optimizer");
    return optimizer == nullptr ? absl::OkStatus() : AddOptimizer(*optimizer);
  }
  return Add("", root);
}

absl::Status TorchStateDict::AddOptimizer(const Node& dict) {
  const PickleDocument& document = file_->document();
  // PyTorch's own, by numbers.
  if (dict.kind != Kind::kDict || document.Find(dict, "param_groups") != nullptr) return absl::OkStatus();
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const Node& plane = document.at(dict.items[i]);
    const Node& values = document.at(dict.items[i + 1]);
    if (plane.kind != Kind::kString || values.kind != Kind::kDict) {
      return absl::InvalidArgumentError("\"optimizer\" is no dict of plane to tensors");
    }
    if (absl::Status s = Add(absl::StrCat(plane.text, "/"), values); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status TorchStateDict::Add(const std::string& prefix, const Node& dict) {
  const PickleDocument& document = file_->document();
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const Node& key = document.at(dict.items[i]);
    const Node& value = document.at(dict.items[i + 1]);
    if (key.kind != Kind::kString || key.text.empty() || !IsValidUtf8(key.text)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a key of the state dict is ", key.kind == Kind::kString
                                                          ? absl::StrCat("no UTF-8 name: ", Quoted(key.text))
                                                          : document.Describe(key)));
    }
    if (value.kind == Kind::kNone) continue;
    TensorEntry entry;
    entry.name = absl::StrCat(prefix, key.text);
    if (!file_->IsTensor(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat(Quoted(entry.name), " is ", document.Describe(value), " and no tensor"));
    }
    absl::StatusOr<TorchTensor> tensor = file_->Tensor(value);
    if (!tensor.ok()) {
      return absl::Status(tensor.status().code(),
                          absl::StrCat("tensor ", Quoted(entry.name), ": ", tensor.status().message()));
    }
    entry.dtype = tensor->dtype;
    entry.shape = tensor->shape;
    entry.end = tensor->bytes;
    entries_.push_back(std::move(entry));
    places_.push_back(*std::move(tensor));
  }
  return absl::OkStatus();
}

absl::Status TorchStateDict::ReadWithin(const TensorEntry& tensor, uint64_t offset,
                                        absl::Span<char> out) const {
  return file_->Read(places_[&tensor - entries_.data()], offset, out);
}

}  // namespace sherd::formats

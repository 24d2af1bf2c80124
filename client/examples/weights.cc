#include "client/examples/weights.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/examples/gpt_config.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/safetensors_file.h"

namespace sherd::examples {
namespace {

absl::StatusOr<at::ScalarType> TorchType(formats::StoredType stored) {
  switch (stored) {
    case formats::StoredType::kF32:
      return at::kFloat;
    case formats::StoredType::kBF16:
      return at::kBFloat16;
    case formats::StoredType::kF16:
      return at::kHalf;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("is ", formats::Name(stored), ", not one of F32, BF16 and F16"));
  }
}

absl::Status ReadParameter(const formats::Checkpoint& file, const std::string& name, at::Tensor& parameter) {
  const formats::TensorEntry& entry = *file.Find(name)->entry;
  const absl::StatusOr<at::ScalarType> type = TorchType(entry.dtype);
  if (!type.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " ", type.status().message()));
  }
  const at::Tensor stored = *type == at::kFloat ? parameter : at::empty(parameter.sizes(), *type);
  const absl::Status read =
      file.Read(name, 0, absl::MakeSpan(static_cast<char*>(stored.data_ptr()), entry.bytes()));
  if (read.ok() && *type != at::kFloat) parameter.copy_(stored);
  return read;
}

}  // namespace

absl::Status SaveTensors(const WeightList& tensors, const std::string& path) {
  ::torch::NoGradGuard no_grad;
  std::vector<formats::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, formats::StoredType::kF32, tensor.sizes().vec()});
  }
  absl::StatusOr<formats::FilePlan> plan = formats::LayOut(std::move(specs), {});
  if (!plan.ok()) return plan.status();
  const auto writer = formats::SafetensorsWriter::Create(path, *std::move(plan), {});
  if (!writer.ok()) return writer.status();
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor whole = tensor.to(at::kFloat).contiguous();
    const absl::Status written = (*writer)->WriteAt(
        name, 0, absl::string_view(static_cast<const char*>(whole.data_ptr()), whole.nbytes()));
    if (!written.ok()) return written;
  }
  return (*writer)->Commit();
}

absl::Status SaveWeights(const Gpt& model, const std::string& path) {
  WeightList tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value());
  return SaveTensors(tensors, path);
}

absl::StatusOr<GptConfig> ConfigOf(const std::string& path, const formats::Checkpoint& file) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes;
  for (const formats::CheckpointTensor& t : file.tensors())
    shapes.emplace_back(t.entry->name, t.entry->shape);
  const absl::StatusOr<GptConfig> config = GptConfig::FromShapes(shapes);
  if (!config.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", config.status().message()));
  return config;
}

absl::StatusOr<std::shared_ptr<Gpt>> LoadWeights(const std::string& path) {
  ::torch::NoGradGuard no_grad;
  const absl::StatusOr<std::unique_ptr<formats::Checkpoint>> file = formats::Checkpoint::Open(path);
  if (!file.ok()) return file.status();
  const absl::StatusOr<GptConfig> config = ConfigOf(path, **file);
  if (!config.ok()) return config.status();
  auto model = std::make_shared<Gpt>(*config);
  for (auto& item : model->named_parameters()) {
    const absl::Status read = ReadParameter(**file, item.key(), item.value());
    if (!read.ok()) return absl::Status(read.code(), absl::StrCat(path, ": ", read.message()));
  }
  return model;
}

}  // namespace sherd::examples

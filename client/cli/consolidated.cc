#include "client/cli/consolidated.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/text.h"
#include "runtime/formats/stored_type.h"

namespace sherd::cli {
namespace {

using formats::StoredType;
using Tensor = v1::ListTensorsResponse::Tensor;

constexpr char kParam[] = "param";
constexpr char kBuffer[] = "buffer";
constexpr char kStep[] = "step";

std::vector<int64_t> ShapeOf(const google::protobuf::RepeatedField<int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

// Planes of a tensor beside its parameters, with the count of its updates.
std::vector<std::string> OptimizerPlanesOf(const Tensor& tensor) {
  std::vector<std::string> planes;
  for (const std::string& plane : tensor.planes()) {
    if (plane != kParam && plane != kStep) planes.push_back(plane);
  }
  if (!tensor.spec().frozen()) planes.push_back(kStep);
  return planes;
}

std::vector<int64_t> ShapeIn(const Tensor& tensor, const std::string& plane) {
  return plane == kStep ? std::vector<int64_t>{} : ShapeOf(tensor.spec().shape());
}

std::string StoredName(const std::string& plane, const std::string& name) {
  return plane == kParam || plane == kBuffer ? name : absl::StrCat(plane, "/", name);
}

v1::TensorRef Ref(const std::string& plane, const std::string& name) {
  v1::TensorRef ref;
  ref.set_plane(plane);
  ref.set_name(name);
  return ref;
}

StoredType ToStored(v1::DType dtype) {
  return dtype == v1::DTYPE_BFLOAT16  ? StoredType::kBF16
         : dtype == v1::DTYPE_FLOAT16 ? StoredType::kF16
                                      : StoredType::kF32;
}

v1::DType FromStored(StoredType type) {
  return type == StoredType::kF32    ? v1::DTYPE_FLOAT32
         : type == StoredType::kBF16 ? v1::DTYPE_BFLOAT16
         : type == StoredType::kF16  ? v1::DTYPE_FLOAT16
                                     : v1::DTYPE_UNSPECIFIED;
}

absl::Status CheckStored(const formats::TensorEntry& entry, const std::vector<int64_t>& shape) {
  if (entry.shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.name, " has shape ",
                                                   ShapeText(entry.shape), " in the file and ",
                                                   ShapeText(shape), " in the job"));
  }
  if (FromStored(entry.dtype) == v1::DTYPE_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.name, " is ", formats::Name(entry.dtype),
                                                   " in the file; F32, BF16 and F16 can be pushed"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PullPlan> PlanPull(const TensorList& job, v1::DType dtype, bool with_optimizer,
                                  uint64_t max_file_bytes, const std::string& stem,
                                  const formats::Metadata& metadata) {
  std::vector<formats::TensorSpec> specs;
  std::map<std::string, v1::TensorRef> by_name;
  const auto add = [&](const std::string& plane, const std::string& name, StoredType type,
                       std::vector<int64_t> shape) {
    const std::string stored = StoredName(plane, name);
    specs.push_back({stored, type, std::move(shape)});
    by_name.emplace(stored, Ref(plane, name));
  };
  for (const Tensor& t : job.tensors) {
    const std::string& name = t.spec().name();
    add(kParam, name, ToStored(dtype), ShapeOf(t.spec().shape()));
    if (!with_optimizer) continue;
    for (const std::string& plane : OptimizerPlanesOf(t))
      add(plane, name, StoredType::kF32, ShapeIn(t, plane));
  }
  for (const v1::Buffer& b : job.buffers) {
    absl::StatusOr<StoredType> type = formats::StoredTypeFromName(b.dtype());
    if (!type.ok()) return type.status();
    add(kBuffer, b.name(), *type, ShapeOf(b.shape()));
  }
  PullPlan plan;
  absl::StatusOr<formats::CheckpointPlan> split = formats::SplitPlan(specs, max_file_bytes, stem, metadata);
  if (!split.ok()) return split.status();
  plan.checkpoint = *std::move(split);
  for (const formats::PlannedFile& file : plan.checkpoint.files) {
    std::vector<v1::TensorRef>& refs = plan.refs.emplace_back();
    for (const formats::TensorEntry& entry : file.plan.header.tensors) refs.push_back(by_name.at(entry.name));
  }
  return plan;
}

absl::StatusOr<PushPlan> PlanPush(const TensorList& job, const std::vector<formats::TensorEntry>& stored) {
  std::map<std::string, const formats::TensorEntry*> left;
  for (const formats::TensorEntry& entry : stored) left.emplace(entry.name, &entry);
  PushPlan plan;
  const auto take = [&](const Tensor& t, const std::string& plane, bool* found) -> absl::Status {
    const auto it = left.find(StoredName(plane, t.spec().name()));
    *found = it != left.end();
    if (!*found) return absl::OkStatus();
    const formats::TensorEntry& entry = *it->second;
    if (absl::Status status = CheckStored(entry, ShapeIn(t, plane)); !status.ok()) return status;
    v1::ImportManifest::Tensor* item = plan.manifest.add_tensors();
    *item->mutable_tensor() = Ref(plane, t.spec().name());
    item->mutable_shape()->Assign(entry.shape.begin(), entry.shape.end());
    item->set_dtype(FromStored(entry.dtype));
    plan.items.push_back({entry.name, entry.bytes()});
    plan.bytes += entry.bytes();
    left.erase(it);
    return absl::OkStatus();
  };
  std::string missing_state;
  int with_state = 0;
  for (const Tensor& t : job.tensors) {
    bool found = false;
    if (absl::Status status = take(t, kParam, &found); !status.ok()) return status;
    if (!found) {
      return absl::InvalidArgumentError(
          absl::StrCat("the file lacks tensor ", t.spec().name(), " of the job; a push is whole or nothing"));
    }
    for (const std::string& plane : OptimizerPlanesOf(t)) {
      if (absl::Status status = take(t, plane, &found); !status.ok()) return status;
      if (found) ++with_state;
      if (!found && missing_state.empty()) missing_state = StoredName(plane, t.spec().name());
    }
  }
  if (with_state > 0 && !missing_state.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the file holds some optimizer state but lacks ",
                                                   missing_state, "; a push takes all of it or none"));
  }
  for (const v1::Buffer& b : job.buffers) plan.skipped_buffers += left.erase(b.name());
  if (!left.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the job has no tensor ", left.begin()->first,
                                                   " (the file holds ", left.size(),
                                                   " that it does not know)"));
  }
  return plan;
}

}  // namespace sherd::cli

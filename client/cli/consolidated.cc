#include "client/cli/consolidated.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "client/cli/text.h"
#include "runtime/formats/stored_type.h"

namespace sherd::cli {
namespace {

using formats::StoredType;
using formats::TensorEntry;
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

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t d : shape) product *= d;
  return product;
}

absl::Status CheckStored(const TensorEntry& entry, const std::vector<int64_t>& shape) {
  const bool same =
      entry.flat ? entry.shape.size() == 1 && entry.shape[0] == Product(shape) : entry.shape == shape;
  if (!same) {
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

// "tensor a", "tensors a, b, c and 7 more".
std::string Some(const std::vector<std::string>& names) {
  constexpr size_t kShown = 3;
  const absl::Span<const std::string> first = absl::MakeSpan(names).subspan(0, kShown);
  std::string text = absl::StrCat(names.size() == 1 ? "tensor " : "tensors ", absl::StrJoin(first, ", "));
  if (names.size() > kShown) absl::StrAppend(&text, " and ", names.size() - kShown, " more");
  return text;
}

// Takes from the file, one tensor after another, what the job has.
class Matcher {
 public:
  Matcher(const std::vector<TensorEntry>& stored, const PushChoice& choice) : choice_(choice) {
    for (const TensorEntry& entry : stored) left_.emplace(entry.name, &entry);
  }

  absl::Status Take(const Tensor& t);
  absl::Status TakeState(const Tensor& t);
  absl::StatusOr<PushPlan> Finish(const TensorList& job) &&;

 private:
  absl::Status TakeValue(const Tensor& t, const std::string& plane, bool* found);

  const PushChoice& choice_;
  std::map<std::string, const TensorEntry*> left_;
  PushPlan plan_;
  std::vector<std::string> missing_state_;
  int with_state_ = 0;
};

absl::Status Matcher::TakeValue(const Tensor& t, const std::string& plane, bool* found) {
  const JobValue value = {plane, t.spec().name()};
  const auto it = left_.find(value.stored_name());
  *found = it != left_.end();
  if (!*found) return absl::OkStatus();
  const TensorEntry& entry = *it->second;
  const std::vector<int64_t> shape = ShapeIn(t, plane);
  if (absl::Status status = CheckStored(entry, shape); !status.ok()) return status;
  v1::ImportManifest::Tensor* item = plan_.manifest.add_tensors();
  *item->mutable_tensor() = value.ref();
  item->mutable_shape()->Assign(shape.begin(), shape.end());
  item->set_dtype(FromStored(entry.dtype));
  plan_.items.push_back({entry.name, entry.bytes()});
  plan_.bytes += entry.bytes();
  left_.erase(it);
  return absl::OkStatus();
}

absl::Status Matcher::Take(const Tensor& t) {
  bool found = false;
  if (absl::Status status = TakeValue(t, kParam, &found); !status.ok()) return status;
  if (!found) plan_.missing.push_back(t.spec().name());
  return absl::OkStatus();
}

absl::Status Matcher::TakeState(const Tensor& t) {
  if (choice_.optimizer == PushChoice::Optimizer::kLeaveOut) {
    const std::string name = absl::StrCat("/", t.spec().name());
    for (auto it = left_.begin(); it != left_.end();) {
      it = absl::EndsWith(it->first, name) ? left_.erase(it) : std::next(it);
    }
    return absl::OkStatus();
  }
  for (const std::string& plane : OptimizerPlanesOf(t)) {
    bool found = false;
    if (absl::Status status = TakeValue(t, plane, &found); !status.ok()) return status;
    if (found) ++with_state_;
    if (!found) missing_state_.push_back(JobValue{plane, t.spec().name()}.stored_name());
  }
  return absl::OkStatus();
}

absl::StatusOr<PushPlan> Matcher::Finish(const TensorList& job) && {
  for (const v1::Buffer& b : job.buffers) plan_.skipped_buffers += left_.erase(b.name());
  for (const auto& [name, entry] : left_) {
    if (!entry->optional) plan_.left_over.push_back(name);
  }
  if (!choice_.partial && !(plan_.missing.empty() && plan_.left_over.empty())) {
    std::vector<std::string> wrong;
    if (!plan_.missing.empty()) {
      wrong.push_back(absl::StrCat("the file lacks ", Some(plan_.missing), " of the job"));
    }
    if (!plan_.left_over.empty()) {
      wrong.push_back(absl::StrCat("the job has no ", Some(plan_.left_over), ", which the file holds"));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        absl::StrJoin(wrong, "; "), ": a push is whole or nothing (--partial takes what both have)"));
  }
  const bool required = choice_.optimizer == PushChoice::Optimizer::kRequired;
  if (required && with_state_ == 0) {
    return absl::InvalidArgumentError("the file holds no optimizer state, and --with-optimizer asks for it");
  }
  if (with_state_ > 0 && !missing_state_.empty() && (required || !choice_.partial)) {
    return absl::InvalidArgumentError(absl::StrCat("the file holds some optimizer state but lacks ",
                                                   Some(missing_state_),
                                                   "; a push takes all of it or none "
                                                   "(--weights-only)"));
  }
  if (plan_.items.empty()) return absl::InvalidArgumentError("the file holds no tensor of the job");
  return std::move(plan_);
}

}  // namespace

std::string JobValue::stored_name() const {
  return plane == kParam || plane == kBuffer ? name : absl::StrCat(plane, "/", name);
}

v1::TensorRef JobValue::ref() const {
  v1::TensorRef ref;
  ref.set_plane(plane);
  ref.set_name(name);
  return ref;
}

absl::StatusOr<std::vector<JobValue>> ValuesOf(const TensorList& job, v1::DType dtype, bool with_optimizer) {
  std::vector<JobValue> values;
  for (const Tensor& t : job.tensors) {
    const std::string& name = t.spec().name();
    values.push_back({kParam, name, ToStored(dtype), ShapeOf(t.spec().shape()), t.spec().frozen()});
    if (!with_optimizer) continue;
    for (const std::string& plane : OptimizerPlanesOf(t)) {
      values.push_back({plane, name, StoredType::kF32, ShapeIn(t, plane), t.spec().frozen()});
    }
  }
  for (const v1::Buffer& b : job.buffers) {
    absl::StatusOr<StoredType> type = formats::StoredTypeFromName(b.dtype());
    if (!type.ok()) return type.status();
    values.push_back({kBuffer, b.name(), *type, ShapeOf(b.shape()), false});
  }
  return values;
}

absl::StatusOr<PushPlan> PlanPush(const TensorList& job, const std::vector<TensorEntry>& stored,
                                  const PushChoice& choice) {
  Matcher matcher(stored, choice);
  // Parameters before the others' state: a parameter may be called like a plane of another.
  for (const Tensor& t : job.tensors) {
    if (absl::Status status = matcher.Take(t); !status.ok()) return status;
  }
  for (const Tensor& t : job.tensors) {
    if (absl::Status status = matcher.TakeState(t); !status.ok()) return status;
  }
  return std::move(matcher).Finish(job);
}

}  // namespace sherd::cli

#include "client/cli/pull_plan.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/consolidated.h"
#include "client/cli/pull_deepspeed.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/safetensors_file.h"
#include "runtime/formats/torch_writer.h"

namespace sherd::cli {
namespace {

absl::StatusOr<PullPlan> PlanSafetensors(const std::vector<JobValue>& values, const PullWish& wish) {
  std::vector<formats::TensorSpec> specs;
  std::map<std::string, v1::TensorRef> by_name;
  for (const JobValue& value : values) {
    specs.push_back({value.stored_name(), value.type, value.shape});
    by_name.emplace(value.stored_name(), value.ref());
  }
  absl::StatusOr<formats::CheckpointPlan> split =
      formats::SplitPlan(specs, wish.max_file_bytes, wish.stem,
                         {{"format", "pt"},
                          {"sherd_step", absl::StrCat(wish.step)},
                          {"sherd_epoch", absl::StrCat(wish.epoch)},
                          {"sherd_layout_hash", absl::StrFormat("%016x", wish.layout_hash)}});
  if (!split.ok()) return split.status();
  PullPlan plan;
  for (formats::PlannedFile& planned : split->files) {
    PullFile& file = plan.files.emplace_back();
    file.name = planned.name;
    for (const formats::TensorEntry& entry : planned.plan.header.tensors) {
      file.refs.push_back(by_name.at(entry.name));
    }
    file.data_bytes = planned.plan.header.data_bytes;
    file.create = [layout = planned.plan](
                      const std::string& path) -> absl::StatusOr<std::unique_ptr<formats::TensorWriter>> {
      return formats::SafetensorsWriter::Create(path, layout, {});
    };
  }
  if (!split->is_sharded()) return plan;
  plan.last_name = split->index_name();
  absl::StatusOr<std::string> index = formats::SerializeIndex(formats::IndexOf(*split));
  if (!index.ok()) return index.status();
  plan.last_bytes = *std::move(index);
  return plan;
}

// Writes the values of each plane as a dict of name to tensor.
class TorchDicts {
 public:
  explicit TorchDicts(const std::vector<JobValue>& values) : values_(values) {}

  // Parameters and buffers.
  absl::Status Weights() {
    return Dict([](const JobValue& v) { return v.plane == "param" || v.plane == "buffer"; });
  }
  absl::Status Plane(const std::string& plane) {
    return Dict([&](const JobValue& v) { return v.plane == plane; });
  }
  formats::TorchTree& tree() { return tree_; }
  absl::StatusOr<PullFile> Finish(const std::string& name) && {
    absl::StatusOr<formats::TorchPlan> layout = std::move(tree_).LayOut();
    if (!layout.ok()) return layout.status();
    PullFile file;
    file.name = name;
    file.refs = std::move(refs_);
    file.data_bytes = layout->data_bytes;
    file.create = [layout = *std::move(layout)](
                      const std::string& path) -> absl::StatusOr<std::unique_ptr<formats::TensorWriter>> {
      return formats::TorchWriter::Create(path, layout);
    };
    return file;
  }

 private:
  template <typename Wanted>
  absl::Status Dict(const Wanted& wanted) {
    absl::flat_hash_set<std::string> names;
    tree_.pickle().BeginDict();
    for (const JobValue& value : values_) {
      if (!wanted(value)) continue;
      if (!names.insert(value.name).second) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", value.name, " is there twice"));
      }
      tree_.pickle().String(value.name);
      tree_.Tensor(value.type, value.shape);
      refs_.push_back(value.ref());
    }
    tree_.pickle().EndDict();
    return absl::OkStatus();
  }

  const std::vector<JobValue>& values_;
  formats::TorchTree tree_;
  std::vector<v1::TensorRef> refs_;
};

absl::Status AddOptimizer(const std::vector<JobValue>& values, TorchDicts* dicts) {
  std::vector<std::string> planes;
  for (const JobValue& value : values) {
    const bool weights = value.plane == "param" || value.plane == "buffer";
    if (!weights && std::find(planes.begin(), planes.end(), value.plane) == planes.end()) {
      planes.push_back(value.plane);
    }
  }
  dicts->tree().pickle().BeginDict();
  for (const std::string& plane : planes) {
    dicts->tree().pickle().String(plane);
    if (absl::Status s = dicts->Plane(plane); !s.ok()) return s;
  }
  dicts->tree().pickle().EndDict();
  return absl::OkStatus();
}

absl::StatusOr<PullPlan> PlanTorch(const std::vector<JobValue>& values, const PullWish& wish) {
  TorchDicts dicts(values);
  formats::PickleWriter& pickle = dicts.tree().pickle();
  absl::Status status;
  if (wish.with_optimizer) {
    pickle.BeginDict();
    pickle.String("model");
    status = dicts.Weights();
    pickle.String("optimizer");
    if (status.ok()) status = AddOptimizer(values, &dicts);
    pickle.String("sherd");
    pickle.BeginDict();
    pickle.String("step");
    pickle.Int(static_cast<int64_t>(wish.step));
    pickle.String("epoch");
    pickle.Int(static_cast<int64_t>(wish.epoch));
    pickle.EndDict();
    pickle.EndDict();
  } else {
    status = dicts.Weights();
  }
  if (!status.ok()) return status;
  absl::StatusOr<PullFile> file = std::move(dicts).Finish(absl::StrCat(wish.stem, ".pt"));
  if (!file.ok()) return file.status();
  PullPlan plan;
  plan.files.push_back(*std::move(file));
  return plan;
}

}  // namespace

absl::StatusOr<PullPlan> PlanPull(const TensorList& job, const PullWish& wish) {
  const bool deepspeed = wish.format == PullFormat::kDeepSpeed;
  absl::StatusOr<std::vector<JobValue>> values = ValuesOf(job, wish.dtype, wish.with_optimizer || deepspeed);
  if (!values.ok()) return values.status();
  switch (wish.format) {
    case PullFormat::kTorch:
      return PlanTorch(*values, wish);
    case PullFormat::kDeepSpeed:
      return PlanDeepSpeed(*values, wish);
    default:
      return PlanSafetensors(*values, wish);
  }
}

}  // namespace sherd::cli

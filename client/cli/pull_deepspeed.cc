#include "client/cli/pull_deepspeed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/torch_writer.h"

namespace sherd::cli {
namespace {

using formats::PickleWriter;
using formats::StoredType;
using formats::TensorWriter;
using formats::TorchTree;
using formats::TorchWriter;
using WriterOr = absl::StatusOr<std::unique_ptr<TensorWriter>>;

// The release whose files these are like; what reads them refuses a file without one.
constexpr char kVersion[] = "0.16.9";
constexpr size_t kMostNameBytes = 255;  // of a folder

// What the step files of one stream told the files behind them.
struct Counts {
  int64_t most = 0;
};

WriterOr Create(const std::string& path, TorchTree&& tree) {
  absl::StatusOr<formats::TorchPlan> plan = std::move(tree).LayOut();
  if (!plan.ok()) return plan.status();
  return TorchWriter::Create(path, *std::move(plan));
}

// A count of updates, which comes as one fp32 number, as the integer that DeepSpeed's optimizers count with.
// A tensor, because PyTorch's count in place.
class StepWriter : public TensorWriter {
 public:
  StepWriter(std::string path, std::shared_ptr<Counts> counts)
      : path_(std::move(path)), counts_(std::move(counts)) {}

  absl::Status WriteData(uint64_t offset, absl::string_view bytes) override {
    if (offset != bytes_.size() || bytes.size() > sizeof(float) - bytes_.size()) {
      return absl::OutOfRangeError(absl::StrCat(path_, ": not the next bytes of a count"));
    }
    absl::StrAppend(&bytes_, bytes);
    return absl::OkStatus();
  }
  absl::Status Commit() override {
    float value = 0;
    if (bytes_.size() != sizeof value) {
      return absl::FailedPreconditionError(absl::StrCat(path_, ": the count is missing"));
    }
    std::memcpy(&value, bytes_.data(), sizeof value);
    const int64_t count = std::llrint(value);
    counts_->most = std::max(counts_->most, count);
    TorchTree tree;
    tree.Tensor(StoredType::kI64, {});
    WriterOr writer = Create(path_, std::move(tree));
    if (!writer.ok()) return writer.status();
    const absl::string_view data(reinterpret_cast<const char*>(&count), sizeof count);
    if (absl::Status s = (*writer)->WriteData(0, data); !s.ok()) return s;
    return (*writer)->Commit();
  }

 private:
  const std::string path_;
  const std::shared_ptr<Counts> counts_;
  std::string bytes_;
};

void PutInt(PickleWriter& pickle, absl::string_view key, int64_t value) {
  pickle.String(key);
  pickle.Int(value);
}
void PutString(PickleWriter& pickle, absl::string_view key, absl::string_view value) {
  pickle.String(key);
  pickle.String(value);
}
// [{"params": [0]}, ...]
void PutGroups(PickleWriter& pickle, int64_t groups) {
  pickle.String("param_groups");
  pickle.BeginList();
  for (int64_t i = 0; i < groups; ++i) {
    pickle.BeginDict();
    pickle.String("params");
    pickle.BeginList();
    pickle.Int(0);
    pickle.EndList();
    pickle.EndDict();
  }
  pickle.EndList();
}

TorchTree OptimizerState(int64_t step, int64_t parameters) {
  TorchTree tree;
  PickleWriter& pickle = tree.pickle();
  pickle.BeginDict();
  PutString(pickle, "ds_version", kVersion);
  // DeepSpeed walks through its own groups and these side by side and stops at the shorter list, without a
  // word. It has at most as many groups as parameters.
  PutGroups(pickle, parameters);
  // Stage 3 looks here; it hands one object to all of its subgroups, so this must not count in place.
  pickle.String("optimizer_state_dict");
  pickle.BeginDict();
  pickle.String("state");
  pickle.BeginDict();
  pickle.Int(0);
  pickle.BeginDict();
  PutInt(pickle, "step", step);
  pickle.EndDict();
  pickle.EndDict();
  PutGroups(pickle, 1);
  pickle.EndDict();
  pickle.EndDict();
  return tree;
}

TorchTree ModelStates(const std::vector<JobValue>& module, uint64_t step, int64_t updates) {
  TorchTree tree;
  PickleWriter& pickle = tree.pickle();
  pickle.BeginDict();
  pickle.String("module");
  pickle.BeginDict();
  for (const JobValue& value : module) {
    pickle.String(value.name);
    tree.Tensor(value.type, value.shape);
  }
  pickle.EndDict();
  // DeepSpeed's schedules count from -1, PyTorch's from 0.
  pickle.String("lr_scheduler");
  pickle.BeginDict();
  PutInt(pickle, "last_batch_iteration", updates - 1);
  PutInt(pickle, "last_epoch", updates);
  PutInt(pickle, "_step_count", updates + 1);
  pickle.String("lr_lambdas");
  pickle.BeginList();
  pickle.EndList();
  pickle.EndDict();
  PutInt(pickle, "global_steps", static_cast<int64_t>(step));
  PutInt(pickle, "skipped_steps", std::max<int64_t>(0, static_cast<int64_t>(step) - updates));
  PutInt(pickle, "dp_world_size", 1);
  PutInt(pickle, "mp_world_size", 1);
  PutString(pickle, "ds_version", kVersion);
  pickle.EndDict();
  return tree;
}

absl::Status CheckName(const std::string& name) {
  if (name != "." && name != ".." && name.size() <= kMostNameBytes && !absl::StrContains(name, '/') &&
      !absl::StrContains(name, '\0')) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", name, " cannot give its name to a folder, as --format deepspeed does; use another format"));
}

// The file of one value of a trained parameter.
PullFile FileOf(const JobValue& value, const std::shared_ptr<Counts>& counts) {
  PullFile file;
  file.name = absl::StrCat("zero/", value.name, "/", value.plane == "param" ? "fp32" : value.plane, ".pt");
  file.refs.push_back(value.ref());
  if (value.plane == "step") {
    file.data_bytes = sizeof(float);
    file.create = [counts](const std::string& path) -> WriterOr {
      return std::make_unique<StepWriter>(path, counts);
    };
    return file;
  }
  file.data_bytes = formats::SizeOf(value.type);
  for (const int64_t d : value.shape) file.data_bytes *= d;
  file.create = [type = value.type, shape = value.shape](const std::string& path) {
    TorchTree tree;
    tree.pickle().BeginDict();
    PutInt(tree.pickle(), "cat_dim", 0);
    tree.pickle().String("param");
    tree.Tensor(type, shape);
    tree.pickle().EndDict();
    return Create(path, std::move(tree));
  };
  return file;
}

}  // namespace

absl::StatusOr<PullPlan> PlanDeepSpeed(const std::vector<JobValue>& values, const PullWish& wish) {
  const auto counts = std::make_shared<Counts>();
  PullPlan plan;
  plan.folder = absl::StrCat("global_step", wish.step);
  plan.last_name = "latest_universal";
  plan.last_bytes = plan.folder;
  std::vector<JobValue> module;  // what is not trained
  int64_t parameters = 0;
  for (const JobValue& value : values) {
    if (value.frozen || value.plane == "buffer") {
      module.push_back(value);
      continue;
    }
    if (absl::Status s = CheckName(value.name); !s.ok()) return s;
    parameters += value.plane == "param";
    plan.files.push_back(FileOf(value, counts));
  }
  PullFile states;
  states.name = "mp_rank_00_model_states.pt";
  for (const JobValue& value : module) {
    const absl::StatusOr<uint64_t> bytes = formats::BytesOf(value.type, value.shape);
    if (!bytes.ok()) return bytes.status();
    states.refs.push_back(value.ref());
    states.data_bytes += *bytes;
  }
  states.create = [=](const std::string& path) {
    return Create(path, ModelStates(module, wish.step, counts->most));
  };
  plan.files.push_back(std::move(states));
  PullFile third;
  third.name = "zero_pp_rank_0_mp_rank_00_model_states.pt";
  third.create = [=](const std::string& path) {
    return Create(path, ModelStates({}, wish.step, counts->most));
  };
  plan.files.push_back(std::move(third));
  PullFile optimizer;
  optimizer.name = "zero/optimizer_state.pt";
  optimizer.create = [=](const std::string& path) {
    return Create(path, OptimizerState(counts->most, parameters));
  };
  plan.files.push_back(std::move(optimizer));
  return plan;
}

}  // namespace sherd::cli

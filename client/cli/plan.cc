#include "client/cli/plan.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/json_text.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "client/config/deepspeed_config.h"
#include "client/options.h"
#include "nlohmann/json.hpp"
#include "proto/convert.h"
#include "runtime/control_page.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/records.h"

namespace sherd::cli {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<OptimizerKind> OptimizerNamed(const std::string& name) {
  if (const kernels::OptimizerInfo* info = kernels::FindOptimizer(name); info != nullptr) return info->kind;
  const auto append = [](std::string* out, const kernels::OptimizerInfo& o) { absl::StrAppend(out, o.name); };
  return absl::InvalidArgumentError(absl::StrCat("--optimizer ", name, ": it must be one of ",
                                                 absl::StrJoin(kernels::kOptimizers, ", ", append)));
}

DType DTypeNamed(const std::string& name) {
  return name == "bf16" ? DType::kBFloat16 : name == "fp16" ? DType::kFloat16 : DType::kFloat32;
}

// "exp_avg/wte.weight" in a file that was pulled with its optimizer.
bool IsOptimizerState(absl::string_view name) {
  const absl::string_view head = name.substr(0, name.find('/'));
  if (head.size() == name.size()) return false;
  if (head == "step") return true;
  for (const kernels::OptimizerInfo& optimizer : kernels::kOptimizers) {
    const std::vector<std::string> planes = OptimizerPlanes(optimizer.kind);
    if (std::find(planes.begin(), planes.end(), head) != planes.end()) return true;
  }
  return false;
}

// "h.3" of "h.3.attn.weight": tensors that share it are one layer. Without a number, the tensor itself.
std::string LayerOf(absl::string_view name) {
  size_t at = 0;
  while (at < name.size()) {
    const size_t dot = std::min(name.find('.', at), name.size());
    int number;
    if (absl::SimpleAtoi(name.substr(at, dot - at), &number)) return std::string(name.substr(0, dot));
    at = dot + 1;
  }
  return std::string(name);
}

// The model's parameters and buffers as the request's layout and buffers, and its largest layer.
absl::Status ReadModel(const std::string& path, int64_t bucket_elements, PlanRequest* request) {
  absl::StatusOr<std::unique_ptr<formats::Checkpoint>> file = formats::Checkpoint::Open(path);
  if (!file.ok()) return file.status();
  std::vector<TensorSpec> specs;
  std::map<std::string, int64_t> layers;
  for (const formats::CheckpointTensor& t : (*file)->tensors()) {
    if (IsOptimizerState(t.entry->name)) continue;
    const std::string stored(formats::Name(t.entry->dtype));
    if (stored[0] != 'F' && stored != "BF16") {
      request->job.buffers.push_back({t.entry->name, t.entry->shape, stored});
      continue;
    }
    TensorSpec spec;
    spec.name = t.entry->name;
    spec.shape = t.entry->shape;
    specs.push_back(spec);
    layers[LayerOf(spec.name)] += CountElements(spec.shape).value_or(0);
  }
  if (specs.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": there is no parameter in it"));
  for (const auto& [name, elements] : layers) {
    request->largest_layer_elements = std::max(request->largest_layer_elements, elements);
  }
  std::reverse(specs.begin(), specs.end());
  absl::StatusOr<Layout> layout = Layout::Create(PackUnits(std::move(specs), bucket_elements));
  if (layout.ok()) request->job.layout = *layout;
  return layout.status();
}

// As a job of these hosts would check it.
absl::Status CheckPartition(const std::string& config, int stage, const PlanRequest& request) {
  const int partition = request.job.gather.hpz_partition, ranks = request.ranks_per_host;
  const int last = request.job.world_size - (request.hosts() - 1) * ranks;
  if (stage < 3 || partition <= 1 || request.hosts() == 1 || partition == ranks || partition == last)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      config, ": zero_hpz_partition_size is ", partition, ", but a host has ", ranks, " trainers: write ",
      ranks > 1 ? absl::StrCat(ranks, " or 1") : "1", ", or give --local-world ", partition));
}

// The rows that a configuration asks for; `options` must not contradict it.
absl::Status ApplyConfig(const PlanOptions& options, PlanTask* task, int64_t* bucket_elements) {
  absl::StatusOr<DeepSpeedConfig> file = DeepSpeedConfig::Load(options.config);
  if (!file.ok()) return file.status();
  ProgramValues mine;
  mine.world_size = task->request.job.world_size;
  mine.micro_batch.value = 1;
  mine.total_steps.value = 1;
  if (options.stage >= 0) mine.stage = {options.stage, "--stage"};
  mine.compute.value = DType::kBFloat16;  // of "auto"
  if (!options.dtype.empty()) mine.compute = {DTypeNamed(options.dtype), "--dtype"};
  absl::StatusOr<TrainingConfig> asked = file->Resolve(mine);
  if (!asked.ok()) return asked.status();
  const OptimizerKind kind = asked->optimizer.kind();
  if (asked->has_optimizer && !options.optimizer.empty() && options.optimizer != Name(kind)) {
    return absl::InvalidArgumentError(absl::StrCat(options.config, ": optimizer.type comes to ", Name(kind),
                                                   ", but --optimizer says ", options.optimizer,
                                                   ": remove the flag"));
  }
  if (asked->has_optimizer) task->request.job.optimizer = kind;
  task->stages = {asked->stage};
  task->dtypes = {asked->compute};
  task->request.accumulation = asked->accumulation;
  task->request.offload_optimizer = asked->offload_optimizer;
  task->request.offload_param = asked->offload_param;
  task->request.job.gather.max_live = asked->stage3.prefetch.max_live;
  task->request.job.gather.hpz_partition = asked->stage3.hpz_partition;
  task->request.job.shard_ranks = asked->shard_ranks;
  *bucket_elements = asked->bucket_elements;
  return CheckPartition(options.config, asked->stage, task->request);
}

// What the segments' own headers say, and what follows from the layout.
void AddPages(PlanRequest* request) {
  request->rank_page_bytes = runtime::RankRecords::BytesFor(request->job);
  request->owner_page_bytes = runtime::OwnerRecords::BytesFor(request->job);
  request->control_bytes = static_cast<int64_t>(sizeof(runtime::ControlPage)) +
                           kMaxWorldSize * static_cast<int64_t>(sizeof(runtime::MemberEntry));
}

// With `dtype` for everything that has the dtype of the computation.
PlanRequest WithDType(const PlanRequest& request, DType dtype) {
  PlanRequest out = request;
  out.job.compute = dtype;
  if (request.job.compute != dtype) out.job.staging = dtype;
  return out;
}

absl::Status SetHosts(const PlanOptions& options, PlanRequest* request) {
  const int world = request->job.world_size;
  request->ranks_per_host = options.local_world > 0 ? options.local_world : std::min(world, 8);
  if (request->ranks_per_host > world) {
    return absl::InvalidArgumentError(absl::StrCat("--local-world ", request->ranks_per_host,
                                                   " is more than the ", world, " trainers (--world)"));
  }
  request->servers = options.servers > 0 ? options.servers : request->ranks_per_host;
  return absl::OkStatus();
}

Json ItemsJson(const SherdPlan& plan) {
  Json out = Json::object();
  for (const PlanItem& item : plan.items) out[item.name] = item.bytes;
  return out;
}

Json PlanJson(const PlanTask& task) {
  const PlanRequest& r = task.request;
  Json json = {{"elements", r.job.layout.total_elements()},
               {"tensors", r.job.layout.tensors().size()},
               {"optimizer", Name(r.job.optimizer)},
               {"world_size", r.job.world_size},
               {"ranks_per_host", r.ranks_per_host},
               {"hosts", r.hosts()},
               {"servers_per_host", r.servers},
               {"offload_optimizer", r.offload_optimizer},
               {"offload_param", r.offload_param},
               {"plans", Json::array()}};
  if (task.job_stage >= 0) json["job"] = {{"stage", task.job_stage}, {"reserved_bytes", task.reserved_bytes}};
  for (const DType dtype : task.dtypes) {
    const PlanRequest request = WithDType(r, dtype);
    for (const int stage : task.stages) {
      const TextbookPlan textbook = PlanTextbook(request, stage);
      const SherdPlan sherd = PlanSherd(request, stage);
      json["plans"].push_back({{"dtype", Name(dtype)},
                               {"stage", stage},
                               {"textbook",
                                {{"rank_bytes", textbook.rank_bytes},
                                 {"offloaded_host_bytes", textbook.host_bytes},
                                 {"traffic_bytes", textbook.traffic_bytes}}},
                               {"sherd",
                                {{"stage", sherd.stage},
                                 {"host_bytes", sherd.host_bytes},
                                 {"rank_bytes", sherd.rank_bytes},
                                 {"rank_private_bytes", sherd.private_bytes},
                                 {"snapshot_bytes", sherd.snapshot_bytes},
                                 {"memory_traffic_bytes", sherd.memory_traffic_bytes},
                                 {"network_traffic_bytes", sherd.network_traffic_bytes},
                                 {"segments", ItemsJson(sherd)}}}});
    }
  }
  return json;
}

// What it costs that hosts keep what they have gathered, and what it saves.
void WriteKeeping(const PlanRequest& request, const SherdPlan& keeps, std::ostream& out) {
  PlanRequest other = request;
  other.job.gather.hpz_partition = 0;
  const SherdPlan frees = PlanSherd(other, 3);
  out << "zero_hpz_partition_size: each host keeps what it has gathered, "
      << DecimalBytes(static_cast<double>(keeps.host_bytes - frees.host_bytes))
      << " more than stage3_max_live_parameters leaves it, and sends "
      << DecimalBytes(keeps.network_traffic_bytes) << " a step instead of "
      << DecimalBytes(frees.network_traffic_bytes) << "\n";
}

void WriteSection(const PlanTask& task, DType dtype, std::ostream& out) {
  const PlanRequest request = WithDType(task.request, dtype);
  out << "\n" << (dtype == DType::kFloat32 ? "fp32" : Name(dtype) + " over fp32 masters") << "\n";
  const bool offload = request.offload_optimizer || request.offload_param;
  Table table({"", "ZeRO:", "ALL RANKS", offload ? "AND OFFLOADED" : "SENT BY A", "Sherd:", "OF IT FOR",
               "PRIVATE", "MEMORY MOVED", "SENT BY A"});
  table.Add({"STAGE", "A RANK", "OF A HOST", offload ? "TO ITS MEMORY" : "RANK, STEP", "A HOST", "EACH RANK",
             "TO A RANK", "HOST, STEP", "HOST, STEP"});
  for (const int stage : task.stages) {
    const TextbookPlan z = PlanTextbook(request, stage);
    const SherdPlan s = PlanSherd(request, stage);
    table.Add({absl::StrCat(stage, stage == task.job_stage ? "*" : ""), DecimalBytes(z.rank_bytes),
               DecimalBytes(z.rank_bytes * request.ranks_per_host),
               DecimalBytes(offload ? z.host_bytes : z.traffic_bytes),
               DecimalBytes(static_cast<double>(s.host_bytes)),
               DecimalBytes(static_cast<double>(s.rank_bytes)),
               DecimalBytes(static_cast<double>(s.private_bytes)), DecimalBytes(s.memory_traffic_bytes),
               DecimalBytes(s.network_traffic_bytes)});
  }
  out << table.ToString();
  const int shown = task.job_stage >= 0 ? task.job_stage : task.stages.size() == 1 ? task.stages[0] : 2;
  const SherdPlan plan = PlanSherd(request, shown);
  out << "Sherd, a host in stage " << shown << ":";
  for (const PlanItem& item : plan.items) {
    out << (&item == &plan.items[0] ? " " : ", ") << item.name << " "
        << DecimalBytes(static_cast<double>(item.bytes));
  }
  out << "; while weights are pulled at most " << DecimalBytes(static_cast<double>(plan.snapshot_bytes))
      << " more\n";
  if (shown == 3 && request.hosts() > 1 && request.job.gather.keep()) WriteKeeping(request, plan, out);
}

}  // namespace

absl::StatusOr<PlanTask> TaskFromFlags(const PlanOptions& options) {
  if (!options.params.empty() && !options.model.empty()) {
    return absl::InvalidArgumentError("--params and --model: give one of them");
  }
  PlanTask task;
  PlanRequest& request = task.request;
  request.job.job = "plan";
  request.job.groups = {"all"};
  request.job.world_size = std::max(options.world, 1);
  if (absl::Status ok = SetHosts(options, &request); !ok.ok()) return ok;
  if (!options.optimizer.empty()) {
    absl::StatusOr<OptimizerKind> kind = OptimizerNamed(options.optimizer);
    if (!kind.ok()) return kind.status();
    request.job.optimizer = *kind;
  }
  task.stages = options.stage >= 0 ? std::vector<int>{options.stage} : std::vector<int>{0, 1, 2, 3};
  task.dtypes = {DType::kBFloat16, DType::kFloat32};
  if (!options.dtype.empty()) task.dtypes = {DTypeNamed(options.dtype)};
  int64_t bucket_elements = ZeroOptions().bucket_elements();
  if (!options.config.empty()) {
    if (absl::Status ok = ApplyConfig(options, &task, &bucket_elements); !ok.ok()) return ok;
  }
  if (!options.model.empty()) {
    if (absl::Status ok = ReadModel(options.model, bucket_elements, &request); !ok.ok()) return ok;
  } else {
    absl::StatusOr<int64_t> elements = ParseCount(options.params);
    if (!elements.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--params: ", elements.status().message()));
    }
    if (*elements > kMaxLayoutElements / 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("--params ", options.params, " is more than a job can have: 2000T"));
    }
    request.job.layout = LayoutOfElements(*elements, DType::kFloat32);
  }
  if (!options.largest_layer.empty()) {
    absl::StatusOr<int64_t> layer = ParseCount(options.largest_layer);
    if (!layer.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--largest-layer: ", layer.status().message()));
    }
    request.largest_layer_elements = *layer;
  }
  if (absl::Status ok = Validate(request.job); !ok.ok()) return ok;
  AddPages(&request);
  return task;
}

void WritePlan(const PlanTask& task, bool json, std::ostream& out) {
  if (json) {
    out << Dump(PlanJson(task));
    return;
  }
  const PlanRequest& r = task.request;
  out << r.job.layout.total_elements() << " elements in " << r.job.layout.tensors().size() << " tensors, "
      << Name(r.job.optimizer) << ", " << r.job.world_size << " trainers, " << r.ranks_per_host
      << " on a host with " << r.servers << " shard servers. GB are 10^9 bytes.\n";
  for (const DType dtype : task.dtypes) WriteSection(task, dtype, out);
  out << "\n";
  if (task.job_stage >= 0) {
    out << "* the running job; it has reserved " << DecimalBytes(static_cast<double>(task.reserved_bytes))
        << "\n";
  }
  if (std::count(task.stages.begin(), task.stages.end(), 3) > 0) {
    out << "On one host stage 3 holds what stage 2 does: the parameters are one copy in shared memory, in "
           "which "
           "units are gathered and released without a copy.\n";
  }
  if (r.offload_optimizer || r.offload_param) {
    out << "ZeRO with offloading: DeepSpeed's estimators"
        << (r.largest_layer_elements == 0 ? ", without the largest layer (--largest-layer)" : "")
        << ". In Sherd all of it is in host memory anyhow.\n";
  }
  out << "Activations, and what libraries keep, come on top in both.\n";
}

absl::Status PlanWithoutJob(const PlanOptions& options, bool json, std::ostream& out) {
  absl::StatusOr<PlanTask> task = TaskFromFlags(options);
  if (task.ok()) WritePlan(*task, json, out);
  return task.status();
}

absl::Status PlanOfJob(const PlanOptions& options, Context& context) {
  if (options.world > 0 || !options.config.empty() || !options.optimizer.empty() || !options.dtype.empty()) {
    return absl::InvalidArgumentError(
        "--world, --config, --optimizer and --dtype are the running job's own: remove them, or say what is "
        "to be "
        "planned with --params or --model");
  }
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  if (cluster->world_size() == 0) {
    return absl::FailedPreconditionError(
        "no trainer has attached yet, so the job's model is not known; try again, or give --params or "
        "--model");
  }
  absl::StatusOr<TensorList> list = ListAll(context.client, "", context.deadline);
  if (!list.ok()) return list.status();
  v1::AttachRequest attach;  // as its trainers described it
  attach.set_job(cluster->job());
  attach.set_world_size(cluster->world_size());
  attach.set_stage(cluster->stage());
  attach.set_accumulation_parts(1);
  attach.set_nominal_samples(1);
  attach.set_max_blob_bytes(kMaxBlobBytes);
  *attach.mutable_optimizer() = cluster->optimizer();
  *attach.mutable_precision() = cluster->precision();
  for (const auto& t : list->tensors) {
    if (t.unit() < 0 || t.unit() >= kMaxTensors) return absl::DataLossError("a tensor's unit is no index");
    while (attach.layout().units_size() <= t.unit()) attach.mutable_layout()->add_units();
    *attach.mutable_layout()->mutable_units(t.unit())->add_tensors() = t.spec();
  }
  for (const v1::Buffer& b : list->buffers) *attach.add_buffers() = b;
  absl::StatusOr<JobSpec> job = JobSpecFromProto(attach);
  if (!job.ok()) return job.status();
  PlanTask task;
  task.request.job = *std::move(job);
  PlanOptions hosts = options;
  if (hosts.local_world == 0) hosts.local_world = cluster->world_size();
  if (hosts.servers == 0) hosts.servers = std::max(cluster->servers(), 1);
  if (absl::Status ok = SetHosts(hosts, &task.request); !ok.ok()) return ok;
  AddPages(&task.request);
  task.stages = options.stage >= 0 ? std::vector<int>{options.stage} : std::vector<int>{0, 1, 2, 3};
  task.dtypes = {task.request.job.compute};
  task.job_stage = cluster->stage();
  task.reserved_bytes = cluster->shared_memory_bytes();
  WritePlan(task, context.json, context.out);
  return absl::OkStatus();
}

}  // namespace sherd::cli

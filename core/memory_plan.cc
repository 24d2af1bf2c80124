#include "core/memory_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/job_sizes.h"
#include "core/prefetch_plan.h"

namespace sherd {
namespace {

int64_t TrainableElements(const Layout& layout) {
  int64_t elements = 0;
  for (const TensorInfo& t : layout.tensors()) elements += t.spec.trainable ? t.numel : 0;
  return elements;
}

// Rounded up to what a host gets of `bytes` that all hosts share.
int64_t Share(int64_t bytes, int hosts) { return (bytes + hosts - 1) / hosts; }

}  // namespace

TextbookPlan PlanTextbook(const PlanRequest& request, int stage) {
  const JobSpec& job = request.job;
  const double all = static_cast<double>(job.layout.total_elements());
  const double trained = static_cast<double>(TrainableElements(job.layout));
  const double ranks = job.world_size, hosts = request.hosts();
  const double b = static_cast<double>(SizeOf(job.compute));
  const double layer = static_cast<double>(request.largest_layer_elements);
  const double masters = job.compute == DType::kFloat32 ? 0 : 4;
  const double state = masters + 4.0 * static_cast<double>(OptimizerPlanes(job.optimizer).size());
  TextbookPlan plan;
  plan.traffic_bytes = (stage == 3 ? 3 : 2) * b * trained;
  if (stage == 3 && request.offload_param) {
    plan.rank_bytes = 2 * b * layer;
    plan.host_bytes = (state + 2 * b + 2) * trained / hosts * 1.5;
  } else if (request.offload_optimizer) {
    plan.rank_bytes = stage == 3 ? 2 * b * layer + b * all / ranks : b * all;
    plan.host_bytes = (state + b + 2) * trained / hosts * 1.5;
  } else {
    plan.rank_bytes = b * all / (stage == 3 ? ranks : 1) + b * trained / (stage >= 2 ? ranks : 1) +
                      state * trained / (stage >= 1 ? ranks : 1);
  }
  return plan;
}

SherdPlan PlanSherd(const PlanRequest& request, int stage) {
  JobSpec job = request.job;
  job.stage = stage;
  job.parts = job.stage < 2 ? 1 : request.accumulation;
  const JobSizes sizes(job);
  const int hosts = request.hosts(), ranks = request.ranks_per_host;
  const int group = request.shard_hosts();  // over which the state is divided
  SherdPlan plan;
  plan.stage = job.stage;
  const auto add = [&plan](std::string name, int64_t bytes) {
    plan.host_bytes += bytes;
    plan.items.push_back({std::move(name), bytes});
  };
  const std::vector<std::string> planes = job.PlaneNames();
  for (size_t p = 0; p < planes.size(); ++p) {
    // Trainers of every host compute with it; in stage 3 they gather what others have.
    const bool whole = p == 0 && job.compute == DType::kFloat32 && job.stage < 3;
    const int64_t bytes = sizes.plane_bytes(static_cast<int>(p));
    add(absl::StrCat("plane.", planes[p]), whole ? bytes : Share(bytes, group));
  }
  if (sizes.compute_bytes() > 0)
    add("plane.compute", job.stage < 3 ? sizes.compute_bytes() : Share(sizes.compute_bytes(), group));
  if (job.stage == 3 && group > 1) {
    const int64_t all = job.layout.total_blocks() * kBlockElements;
    const int64_t limit = job.gather.max_live > 0 ? job.gather.max_live : PrefetchLimits().max_live;
    const int64_t others = all - Share(all, group);
    add("gathered", (job.gather.keep() ? others : std::min(limit, others)) * SizeOf(job.compute));
  }
  add("grad", Share(sizes.grad_bytes(), group));
  if (sizes.directions_bytes() > 0) add("directions", Share(sizes.directions_bytes(), group));
  add("stamps", Share(sizes.stamps_bytes(), group));
  add("staging", ranks * sizes.staging_bytes());
  // Partial sums on their way: the outbox is what others own, an inbox for each of them is what this host
  // owns.
  const DType wire = job.reduction.groups.empty() ? job.staging : job.reduction.wire;
  const int64_t sums = sizes.trainable_blocks() * kBlockElements * SizeOf(wire);
  const int64_t outbox =
      hosts > group ? sums : sums - Share(sums, group);  // of groups each has owners of all
  if (hosts > 1) add("exchange", outbox + (hosts - 1) * Share(sums, group));
  add("records",
      ranks * request.rank_page_bytes + request.servers * request.owner_page_bytes + request.control_bytes);
  plan.rank_bytes = sizes.staging_bytes() + request.rank_page_bytes;
  if (job.stage < 2 && request.accumulation > 1) {
    plan.private_bytes = TrainableElements(job.layout) * 4;  // in fp32, whatever the computation is
  }
  plan.snapshot_bytes = Share(sizes.plane_bytes(0) + job.layout.total_blocks() * 4, group);

  // Reduce: every rank's gradient read, the sum written. Update: the sum, the parameter and the state read,
  // all but the sum written, and the parameters of the computation.
  const double elements = static_cast<double>(TrainableElements(job.layout));
  const double staged = static_cast<double>(SizeOf(job.staging));
  const double compute = job.compute == DType::kFloat32 ? 0.0 : static_cast<double>(SizeOf(job.compute));
  const double state = 4.0 * static_cast<double>(planes.size());
  const double reduce = elements * (ranks * staged + 4);
  // LAMB writes the direction over the gradient, and reads it and the values once more; of Muon the gradient
  // and momentum, and the direction both ways.
  const kernels::OptimizerInfo* info = kernels::FindOptimizer(job.optimizer);
  const double before = info->norms ? 12 : info->directions ? 16 : 0;
  const double update = elements * (4 + 2 * state + compute + before);
  plan.memory_traffic_bytes = (reduce + update) / group;
  // This host's sums go to the hosts that own the blocks, of each part that is reduced; its own parameters go
  // to all of its group, in stage 3 for forward and for backward of each micro-batch, unless
  // they keep them.
  if (hosts > 1) {
    const double others = static_cast<double>(group - 1) / group;
    const double sent = elements * (hosts - 1) / group * static_cast<double>(SizeOf(wire)) * job.parts;
    plan.memory_traffic_bytes = reduce + update / group + 2 * sent;  // written here, read there
    const double times = job.stage < 3 || job.gather.keep() ? 1 : 2.0 * job.parts;
    plan.network_traffic_bytes = sent + times * elements * others * (compute > 0 ? compute : 4.0);
  }
  return plan;
}

Layout LayoutOfElements(int64_t elements, DType dtype) {
  const int64_t each =
      std::max(int64_t{4} << 20, (elements / 100000 + kBlockElements) / kBlockElements * kBlockElements);
  std::vector<std::vector<TensorSpec>> units;
  for (int64_t at = 0; at < elements; at += each) {
    TensorSpec spec;
    spec.name = absl::StrCat("part.", units.size());
    spec.shape = {std::min(each, elements - at)};
    spec.dtype = dtype;
    units.push_back({spec});
  }
  return *Layout::Create(std::move(units));
}

}  // namespace sherd

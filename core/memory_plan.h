// How much memory and traffic a job takes before it is started: by ZeRO's textbook (each rank holds its part)
// and in Sherd (a host's trainers share one copy, which the servers own).
//
//   PlanRequest request;
//   request.job.layout = LayoutOfElements(7'500'000'000);
//   request.job.world_size = 64;  request.job.compute = DType::kBFloat16;
//   PlanTextbook(request, /*stage=*/2).rank_bytes          // 16.6 GB
//   PlanSherd(request, 2).host_bytes                       // of one host, shared by its trainers
//
// Textbook: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020,
// section 5, with P elements, N ranks, n hosts, b bytes of a parameter and gradient in the dtype of the
// computation, and K bytes of optimizer state (fp32 masters of 16-bit parameters, and its planes):
//   stage 0: (2b + K) P     1: 2b P + K P/N     2: b P + (b + K) P/N     3: (2b + K) P/N
// and per step and rank, at the least, 2 P elements sent, 3 P in stage 3. With offloading, DeepSpeed's
// estimators (16-bit, Adam: 4 L is one layer's parameters and gradients, 1.5 is for buffers):
//   optimizer:      device b P (stages 0 to 2) or 4 L + 2 P/N (3), host (12 + b + 2) P/n x 1.5
//   and parameters: device 4 L (stage 3), host 18 P/n x 1.5
//
// Sherd: the segments that a job reserves, to the byte on one host (JobSizes). On n > 1 hosts planes and
// gradients are 1/n each and the parameters of the computation whole; partial sums of b' bytes an element
// (the dtype of the reduction tree, or of staging) wait in an outbox, (n-1)/n P, and in inboxes, as much
// again. A host sends (n-1)/n P (b' + b) bytes a step: its sums of the others' blocks, once for each part
// that stage 2 reduces, and its own parameters to each of the others. In stage 3 a host has 1/n of the
// parameters, too, and beside that what is gathered, at most JobSpec::gather.max_live (0: DeepSpeed's
// default); it sends its share for forward and for backward of each micro-batch: (n-1)/n P (b' + 2b). With
// JobSpec::gather.hpz_partition it has all of the others' as well, and sends its share once: (n-1)/n P (b' +
// b) if there is one micro-batch.
//
// Pure; thread-safe.
#ifndef SHERD_CORE_MEMORY_PLAN_H_
#define SHERD_CORE_MEMORY_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/job_spec.h"
#include "core/layout.h"

namespace sherd {

struct PlanRequest {
  // Its layout, optimizer, dtypes, buffers and world_size count; its stage does not.
  JobSpec job;
  int ranks_per_host = 1;  // 1..world_size
  int servers = 1;         // shard servers of a host
  int accumulation = 1;    // micro-batches of a step
  bool offload_optimizer = false, offload_param = false;
  int64_t largest_layer_elements = 0;  // 0: not known, and left out
  // Pages of records, which runtime/ lays out: of one trainer, of one server, and of the job.
  int64_t rank_page_bytes = 0, owner_page_bytes = 0, control_bytes = 0;

  int hosts() const { return (job.world_size + ranks_per_host - 1) / ranks_per_host; }
  // That hold the state once: all, or as JobSpec::shard_ranks says, in whole hosts.
  int shard_hosts() const {
    const int group = job.shard_ranks / ranks_per_host;
    return group > 0 && hosts() % group == 0 ? group : hosts();
  }
};

struct TextbookPlan {
  double rank_bytes = 0;     // on the device of a rank
  double host_bytes = 0;     // in the memory of a host, for what is offloaded
  double traffic_bytes = 0;  // that a rank sends in a step
};

struct PlanItem {
  std::string name;  // of the segment: "plane.exp_avg", "staging" (of all trainers of the host), ...
  int64_t bytes = 0;
};

struct SherdPlan {
  int stage = 0;                     // as it runs
  std::vector<PlanItem> items;       // of a host, in shared memory
  int64_t host_bytes = 0;            // their sum
  int64_t rank_bytes = 0;            // of them: what one more trainer adds
  int64_t private_bytes = 0;         // of a trainer: gradients kept while micro-batches accumulate
  int64_t snapshot_bytes = 0;        // while the parameters are pulled: at most, in addition
  double memory_traffic_bytes = 0;   // read and written by a host's servers in a step
  double network_traffic_bytes = 0;  // that a host sends in a step; 0 on one host
};

// REQUIRES of both: stage in 0..3, ranks_per_host in 1..world_size, Validate(request.job).
TextbookPlan PlanTextbook(const PlanRequest& request, int stage);
SherdPlan PlanSherd(const PlanRequest& request, int stage);

// A layout of so many elements, for a model of which only the size is known: tensors of 4M elements, or
// larger ones, so that they are at most 100,000. REQUIRES: 1 <= elements <= kMaxLayoutElements / 2.
Layout LayoutOfElements(int64_t elements, DType dtype);

}  // namespace sherd

#endif  // SHERD_CORE_MEMORY_PLAN_H_

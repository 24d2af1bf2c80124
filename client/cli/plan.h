// `sherd plan`: memory and traffic of a job before it is started, by ZeRO's textbook and in Sherd
// (core/memory_plan.h), for a number of parameters, a model's file, or the job that runs.
#ifndef SHERD_CLIENT_CLI_PLAN_H_
#define SHERD_CLIENT_CLI_PLAN_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/context.h"
#include "core/memory_plan.h"

namespace sherd::cli {

// As typed; empty, 0 and -1: not given.
struct PlanOptions {
  std::string params;  // "7.5B"
  std::string model;   // safetensors file, index or folder; only headers are read
  std::string config;  // DeepSpeed's JSON: stage, optimizer, dtype, offloading, accumulation
  std::string optimizer, dtype, largest_layer;
  int stage = -1;
  int world = 0, local_world = 0;  // trainers, and how many of them on a host
  int servers = 0;                 // shard servers of a host
  bool of_running_job() const { return params.empty() && model.empty(); }
};

// What is to be planned.
struct PlanTask {
  PlanRequest request;         // its dtypes are set for each row
  std::vector<DType> dtypes;   // a section for each
  std::vector<int> stages;     // a row for each
  int job_stage = -1;          // of the running job
  int64_t reserved_bytes = 0;  // by the running job
};

// Without a job: reads files, talks to nobody. INVALID_ARGUMENT: contradictory or wrong options, in one line;
// errors of the files.
absl::StatusOr<PlanTask> TaskFromFlags(const PlanOptions& options);

// Text for people, or one JSON document.
void WritePlan(const PlanTask& task, bool json, std::ostream& out);

// Both; for the job that runs, if neither parameters nor a model were given.
absl::Status PlanWithoutJob(const PlanOptions& options, bool json, std::ostream& out);
absl::Status PlanOfJob(const PlanOptions& options, Context& context);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PLAN_H_

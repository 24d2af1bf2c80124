// One slot's part in what its host does for the owners of other hosts: sums what the host's ranks delivered
// into the outbox and marks it SLICED, for the agent to send (core/slice_pipeline.h; DESIGN.md, several
// hosts).
//
//   SliceWork slices(memory, slot, records, &pool);
//   slices.SetAssignment(assignment, current);
//   StatusOr<bool> some = slices.Pass(current);        // true: something was summed; look again
//
// In a job of one host it does nothing. Thread-compatible; of the engine's thread.
#ifndef SHERD_SERVER_SLICE_WORK_H_
#define SHERD_SERVER_SLICE_WORK_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/host_map.h"
#include "core/slice_pipeline.h"
#include "runtime/job_memory.h"
#include "server/worker_pool.h"

namespace sherd::server {

class SliceWork {
 public:
  // All are borrowed.
  SliceWork(runtime::JobMemory* memory, Slot slot, runtime::OwnerRecords* records, WorkerPool* pool)
      : memory_(memory), slot_(slot), records_(records), pool_(pool) {}

  // The slot works in `a` from now on, where it stands in step `current`.
  //   an error: a page of another slot cannot be mapped
  absl::Status SetAssignment(const runtime::Assignment& a, StepId current);

  // Looks at what stands in memory, and sums what can be.
  absl::StatusOr<bool> Pass(StepId current);

  std::string WaitsFor() const { return pipeline_.has_value() ? pipeline_->WaitsFor() : ""; }

 private:
  void Show();
  absl::Status Sum(const std::vector<SliceOrder>& slices);

  runtime::JobMemory* const memory_;
  const Slot slot_;
  runtime::OwnerRecords* const records_;
  WorkerPool* const pool_;
  std::optional<SlicePipeline> pipeline_;
  std::vector<std::vector<BlockRange>> ranges_;                  // per unit
  std::vector<std::pair<Slot, runtime::OwnerRecords*>> others_;  // owners on other hosts
  int first_rank_ = 0, end_rank_ = 0;
  std::vector<SliceOrder> todo_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SLICE_WORK_H_

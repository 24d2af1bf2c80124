// A model's buffers (running statistics), which rank 0 hands over with each step and every rank takes up
// where a job goes on.
//
//   SharedBuffers buffers;
//   buffers.Declare(model->named_buffers(), &spec);      // before Attach
//   buffers.Publish(memory, step);                        // rank 0, before its record of the step
//   buffers.Take(memory, step);                           // as they were committed with it
//
// Thread-compatible.
#ifndef SHERD_CLIENT_TORCH_SHARED_BUFFERS_H_
#define SHERD_CLIENT_TORCH_SHARED_BUFFERS_H_

#include <ATen/core/Tensor.h>
#include <torch/ordered_dict.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/job_spec.h"
#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::torch {

class SharedBuffers {
 public:
  // Keeps the tensors and adds what they are to the job. INVALID_ARGUMENT names one that can not be carried.
  absl::Status Declare(const ::torch::OrderedDict<std::string, at::Tensor>& buffers, JobSpec* spec);
  // Copies their values to rank 0's record of `step`, or back from there. REQUIRES: `memory` is of that job.
  void Publish(runtime::JobMemory& memory, Step step) const;
  void Take(runtime::JobMemory& memory, Step step);

 private:
  std::vector<at::Tensor> tensors_;  // in the order of the job's buffers
};

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_SHARED_BUFFERS_H_

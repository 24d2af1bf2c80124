// A model's parameters in the job's shared memory: what they start from, and where they are read.
//
//   if (session.must_initialise()) WriteInitialValues(session, parameters);   // then session.CommitInitial()
//   MapParameters(session, window, &parameters);                              // read-only views from now on
//
// A parameter that the job computes in 16 bits becomes a view of the rounded copy that its servers keep
// beside the fp32 master, whatever type it had; an fp32 one is a view of the master itself.
#ifndef SHERD_CLIENT_TORCH_SHARED_PARAMETERS_H_
#define SHERD_CLIENT_TORCH_SHARED_PARAMETERS_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/parameter_window.h"
#include "client/session.h"
#include "core/types.h"

namespace sherd::torch {

struct SharedParameter {
  std::string name;
  at::Tensor tensor;
  int index = 0;               // in the layout
  const void* home = nullptr;  // null for an empty tensor
};

// What `parameters` are computed in: `asked`, or without it the 16-bit type that some of them have, or fp32.
//   INVALID_ARGUMENT  one has another 16-bit type: names it
absl::StatusOr<DType> ComputeType(const std::vector<SharedParameter>& parameters, const DType* asked);

// The values to begin with, as fp32: what the tensors hold, or what a MetaInit noted for them. REQUIRES:
// session.must_initialise().
//   FAILED_PRECONDITION  one was made under MetaInit and never initialised: names it
absl::Status WriteInitialValues(Session& session, const std::vector<SharedParameter>& parameters);

// Makes the tensors views of shared memory, through `window` if there is one, and a stray write to one, or a
// use while it is released, an error that names it. REQUIRES: the job has its initial values. Gradient
// accumulators that were made before belong to the tensors no more.
void MapParameters(Session& session, const std::shared_ptr<client::ParameterWindow>& window,
                   std::vector<SharedParameter>* parameters);

// FAILED_PRECONDITION, naming the parameter whose storage was replaced.
absl::Status CheckHomes(const std::vector<SharedParameter>& parameters);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_SHARED_PARAMETERS_H_

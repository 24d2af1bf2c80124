// What a ZeroOptimizer asks a job to be, from the parameters it is given.
//
//   auto d = DeclareJob(parameters, groups, options, world_size, buffers, blocks);
//   session.Attach(d->spec);
#ifndef SHERD_CLIENT_TORCH_JOB_DECLARATION_H_
#define SHERD_CLIENT_TORCH_JOB_DECLARATION_H_

#include <ATen/core/Tensor.h>
#include <torch/ordered_dict.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/options.h"
#include "client/torch/sharded.h"
#include "client/torch/shared_buffers.h"
#include "client/torch/shared_parameters.h"
#include "core/job_spec.h"

namespace sherd::torch {

using NamedTensors = ::torch::OrderedDict<std::string, at::Tensor>;

// Parameters that share scalars. Names are those of named_parameters().
struct ParamGroup {
  std::string name;
  std::vector<std::string> parameters;
  OptimizerOptions options;
};

struct JobDeclaration {
  JobSpec spec;
  std::vector<SharedParameter> parameters;  // a tied one once, under its first name
  std::vector<GroupScalars> scalars;        // per group
  std::vector<bool> persistent;             // stage 3: per unit
};

// Declares `named_buffers` in `buffers` too. In stage 3 the tensors of each of `blocks` have units of their
// own; of one that several gather, the first's.
//   INVALID_ARGUMENT  as ZeroOptimizer::Create says
absl::StatusOr<JobDeclaration> DeclareJob(const NamedTensors& parameters,
                                          const std::vector<ParamGroup>& groups, const ZeroOptions& options,
                                          int world_size, const NamedTensors& named_buffers,
                                          SharedBuffers* buffers,
                                          const std::vector<std::shared_ptr<ShardedBlock>>& blocks);

// Lets every block gather the units that its own parameters are in. `parameters` have their places in the
// layout. Without a window calls of blocks are plain calls from now on.
void OpenBlocks(const std::vector<std::shared_ptr<ShardedBlock>>& blocks, const Layout& layout,
                const std::vector<SharedParameter>& parameters,
                std::shared_ptr<client::ParameterWindow> window);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_JOB_DECLARATION_H_

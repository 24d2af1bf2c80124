// The optimizers that Sherd's are measured against, in one process: libtorch's own where it has one (SGD,
// Adam, AdamW, Adagrad), else the paper's lines written with tensor operations.
//
//   auto optimizer = MakeReferenceOptimizer({{decayed, options}, {others, options}});
//   loss.backward();  optimizer->Step();
//
// Thread-compatible. Throws libtorch's exceptions.
#ifndef SHERD_CLIENT_EXAMPLES_REFERENCE_OPTIMIZER_H_
#define SHERD_CLIENT_EXAMPLES_REFERENCE_OPTIMIZER_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "client/optimizer_options.h"

namespace sherd::examples {

struct ReferenceGroup {
  std::vector<at::Tensor> parameters;
  OptimizerOptions options;
};

class ReferenceOptimizer {
 public:
  virtual ~ReferenceOptimizer() = default;

  // Updates every parameter that has a gradient.
  virtual void Step() = 0;
  // From the next Step on. `group` is an index into what it was made from.
  virtual void SetRate(int group, double lr) = 0;
  // REQUIRES: HasBetas of its kind.
  virtual void SetBetas(int group, double beta1, double beta2) = 0;
  // A parameter's state, in the order of kernels::OptimizerInfo::plane_names. Empty before its first update.
  virtual std::vector<at::Tensor> State(const at::Tensor& parameter) const = 0;
};

// REQUIRES: at least one group; all of one kind of optimizer.
std::unique_ptr<ReferenceOptimizer> MakeReferenceOptimizer(std::vector<ReferenceGroup> groups);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_REFERENCE_OPTIMIZER_H_

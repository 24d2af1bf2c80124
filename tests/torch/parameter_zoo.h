// A little model with every kind of parameter, and the same training in one process with libtorch alone.
#ifndef SHERD_TESTS_TORCH_PARAMETER_ZOO_H_
#define SHERD_TESTS_TORCH_PARAMETER_ZOO_H_

#include <torch/types.h>

#include <string>
#include <vector>

#include "client/torch/zero_optimizer.h"

namespace sherd::tests {

inline constexpr int64_t kZooBatch =
    7;  // samples of a step: odd, so that ranks and micro-batches get unequal shares

struct ParameterZoo {
  ParameterZoo();

  // Mean over the samples of a step. Sample 0 alone uses `sometimes`: other ranks have no gradient for it.
  at::Tensor Loss(uint64_t step, SampleRange samples) const;

  at::Tensor skewed;     // [7, 5], columns first in memory
  at::Tensor tied;       // [7, 7], under two names, used twice in a graph
  at::Tensor frozen;     // [7], requires no gradient
  at::Tensor never;      // [3], used by nobody
  at::Tensor sometimes;  // [5]
  at::Tensor empty;      // [0, 3]
  at::Tensor scalar;     // []
  at::Tensor big;        // [90, 7], larger than a bucket of the tests
  torch::NamedTensors parameters;
};

// Two groups, whose scalars differ.
std::vector<torch::ParamGroup> ZooGroups();
inline constexpr double kZooClip = 0.5;
// Learning rate of group 1 from a step on: it changes during the run.
double ZooLearningRate(uint64_t step);

// All parameters one after another, as bytes.
std::string Flatten(const ParameterZoo& zoo);
std::vector<float> Floats(const std::string& bytes);

// What `steps` steps of libtorch's own AdamW make of it, on the whole batch.
std::string TrainInOneProcess(int steps);

}  // namespace sherd::tests

#endif  // SHERD_TESTS_TORCH_PARAMETER_ZOO_H_

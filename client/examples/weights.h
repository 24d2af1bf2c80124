// A model's weights as a safetensors file.
#ifndef SHERD_CLIENT_EXAMPLES_WEIGHTS_H_
#define SHERD_CLIENT_EXAMPLES_WEIGHTS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/examples/gpt.h"

namespace sherd::examples {

using WeightList = std::vector<std::pair<std::string, at::Tensor>>;

// Writes tensors as fp32, by temporary file and rename. Errors name the path.
absl::Status SaveTensors(const WeightList& tensors, const std::string& path);

// The same for every parameter of a model, as it is.
absl::Status SaveWeights(const Gpt& model, const std::string& path);

// Reads a model whose size follows from the tensors' shapes; fp32, bf16 and fp16 are taken, tensors that are
// no parameter of a GPT (optimizer state) passed over. kNotFound, kInvalidArgument or kDataLoss say what is
// wrong with `path`.
absl::StatusOr<std::shared_ptr<Gpt>> LoadWeights(const std::string& path);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_WEIGHTS_H_

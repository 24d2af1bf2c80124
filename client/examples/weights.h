// A model's weights in files.
#ifndef SHERD_CLIENT_EXAMPLES_WEIGHTS_H_
#define SHERD_CLIENT_EXAMPLES_WEIGHTS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/examples/gpt.h"
#include "runtime/formats/checkpoint.h"

namespace sherd::examples {

using WeightList = std::vector<std::pair<std::string, at::Tensor>>;

// Writes tensors as fp32, by temporary file and rename. Errors name the path.
absl::Status SaveTensors(const WeightList& tensors, const std::string& path);

// The same for every parameter of a model, as it is.
absl::Status SaveWeights(const Gpt& model, const std::string& path);

// The model that `path` holds, from its tensors' shapes. INVALID_ARGUMENT names what is wrong.
absl::StatusOr<GptConfig> ConfigOf(const std::string& path, const formats::Checkpoint& file);

// Reads a model from a file or a folder of them (runtime/formats/checkpoint.h); fp32, bf16 and fp16 are
// taken, tensors that are no parameter of a GPT (optimizer state) passed over. kNotFound, kInvalidArgument or
// kDataLoss say what is wrong with `path`.
absl::StatusOr<std::shared_ptr<Gpt>> LoadWeights(const std::string& path);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_WEIGHTS_H_

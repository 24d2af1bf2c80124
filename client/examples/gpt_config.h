// The shapes of a byte-level GPT, without libtorch: sizes by name, and the parameters that follow from a
// size.
//
//   absl::StatusOr<GptConfig> config = GptConfig::Named("small", /*context=*/128);
//   for (const ParameterSpec& p : ParameterSpecs(*config)) ...      // "wte.weight" {256, 384}, ...
//
// Names and layouts are those of GPT-2 in the transformers library, so its GPT2LMHeadModel (vocab_size 256)
// opens a file of these weights as it is. With experts a block has mlp.router.weight [width, experts], and
// mlp.experts.N.c_fc and c_proj instead of mlp.c_fc and c_proj.
#ifndef SHERD_CLIENT_EXAMPLES_GPT_CONFIG_H_
#define SHERD_CLIENT_EXAMPLES_GPT_CONFIG_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::examples {

struct GptConfig {
  int64_t layers = 0;
  int64_t width = 0;    // a multiple of kHeadSize
  int64_t context = 0;  // positions
  int64_t experts = 0;  // feed-forward networks of a block, of which each token takes one; 0: one for all

  // GPT-2's: every size has heads of 64, so a file's shapes say all there is to know.
  static constexpr int64_t kHeadSize = 64;
  int64_t heads() const { return width / kHeadSize; }

  // "tiny" 2 x 128 (0.4M parameters), "small" 6 x 384 (10.8M), "gpt2" 12 x 768 (85M; 124M with GPT-2's
  // vocabulary), "gpt2-xl" 48 x 1600 (1.5G). kInvalidArgument names the sizes there are.
  static absl::StatusOr<GptConfig> Named(absl::string_view size, int64_t context);

  // The config of a stored model, from its tensors' names and shapes; others than a GPT's are passed over.
  // kInvalidArgument: a tensor is missing or has another shape; the message names it.
  static absl::StatusOr<GptConfig> FromShapes(
      const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors);
};

inline constexpr absl::string_view kGptSizes[] = {"tiny", "small", "gpt2", "gpt2-xl"};

// The learning rate that suits a named size. REQUIRES: `size` is one of kGptSizes.
double DefaultLearningRate(absl::string_view size);

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// All parameters, in the order of Gpt::named_parameters(). The language-model head is wte.weight and not
// listed twice.
std::vector<ParameterSpec> ParameterSpecs(const GptConfig& config);

// Elements of all parameters.
int64_t ParameterCount(const GptConfig& config);

// Whether weight decay applies: to the matrices of the blocks alone. Biases and LayerNorm are scales and
// offsets, which zero does not regularise; an embedding's row gets a gradient only when its byte or position
// occurs, and decay would shrink the rare ones in between.
bool IsDecayed(absl::string_view name);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_GPT_CONFIG_H_

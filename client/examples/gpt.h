// A byte-level GPT-2: pre-norm, GELU (tanh form), learned positions, causal attention, the embedding tied to
// the head, no dropout.
//
//   auto model = std::make_shared<Gpt>(*GptConfig::Named("tiny", 128));
//   model->Initialize(/*seed=*/1);
//   at::Tensor loss = model->Loss(windows);           // int64 [samples, tokens + 1]
//   loss.backward();
//
// Every operation reads its parameter when it runs: parameters may be given other storage (set_data) at any
// time between a backward and the next forward, and be there only while a block of sharded_blocks() computes.
#ifndef SHERD_CLIENT_EXAMPLES_GPT_H_
#define SHERD_CLIENT_EXAMPLES_GPT_H_

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "client/examples/gpt_config.h"
#include "client/torch/sharded.h"

namespace sherd::examples {

// A weight and a bias: of a linear map, or of a LayerNorm.
class Affine : public ::torch::nn::Module {
 public:
  // Registers "weight" of `shape` and "bias" of `bias_elements` (none if 0), memory not initialised.
  Affine(at::IntArrayRef shape, int64_t bias_elements);

  // x [rows, in] -> [rows, out]; the weight is [in, out], as GPT-2 stores it.
  at::Tensor Linear(const at::Tensor& x) const;
  // Over the last dimension.
  at::Tensor Norm(const at::Tensor& x) const;

  at::Tensor weight;
  at::Tensor bias;
};

// Keys and values of the tokens a model has already seen, for generating one at a time.
struct AttentionCache {
  at::Tensor keys;    // [samples * heads, tokens, head size]; undefined before the first
  at::Tensor values;  // alike
};

// linear, GELU, linear: "c_fc" and "c_proj" of `parent`.
class FeedForward {
 public:
  FeedForward() = default;
  FeedForward(::torch::nn::Module* parent, int64_t width);
  at::Tensor operator()(const at::Tensor& rows) const;

 private:
  std::shared_ptr<Affine> c_fc_, c_proj_;
};

// One of several feed-forward networks. What no row of a batch takes is neither gathered nor computed, and
// gets no gradient, as in one process.
class Expert : public ::torch::nn::Module {
 public:
  explicit Expert(int64_t width) : mlp_(this, width) {}
  at::Tensor forward(const at::Tensor& rows) const { return mlp_(rows); }

 private:
  FeedForward mlp_;
};

// One transformer block: x + attention(norm(x)), then x + mlp(norm(x)).
class GptBlock : public ::torch::nn::Module {
 public:
  explicit GptBlock(const GptConfig& config);

  // x: [samples, tokens, width]; mask: [tokens, all tokens], 0 where a row may look and -infinity elsewhere,
  // where all tokens are those of `cache` and x together. `cache` may be null; otherwise x's keys and values
  // are appended.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& mask, AttentionCache* cache);

  const std::vector<sherd::torch::Sharded<std::shared_ptr<Expert>>>& experts() const { return experts_; }

 private:
  // Each row goes through the expert that the router prefers, times its probability (Fedus et al., "Switch
  // Transformers", 2021, equation 2).
  at::Tensor Route(const at::Tensor& rows) const;
  at::Tensor Attention(const at::Tensor& x, const at::Tensor& mask, AttentionCache* cache) const;

  int64_t heads_;
  std::shared_ptr<Affine> ln_1_, ln_2_, c_attn_, attn_proj_, router_;
  FeedForward mlp_;  // without experts
  std::vector<sherd::torch::Sharded<std::shared_ptr<Expert>>> experts_;
};

// Thread-compatible, except that forward passes without a cache may run at the same time.
class Gpt : public ::torch::nn::Module {
 public:
  struct Cache {
    std::vector<AttentionCache> layers;
    int64_t tokens = 0;
  };

  // Allocates the parameters; their values are undefined until Initialize or a load.
  explicit Gpt(const GptConfig& config);

  const GptConfig& config() const { return config_; }

  // GPT-2's initial values: matrices and embeddings N(0, 0.02), the two projections back into the residual
  // stream N(0, 0.02 / sqrt(2 layers)), biases 0, LayerNorm 1 and 0. Each parameter's depend on `seed` and
  // its name alone.
  void Initialize(uint64_t seed);

  // The embeddings and the first `blocks` blocks are not trained. REQUIRES: 0 <= blocks <= config().layers.
  void Freeze(int64_t blocks);

  // Logits of the token after each: int64 tokens [samples, n] -> [samples, n, 256]. With `cache`, the tokens
  // follow those already in it, and are added. REQUIRES: n >= 1, tokens in all <= config().context.
  at::Tensor forward(const at::Tensor& tokens, Cache* cache = nullptr);

  // Mean cross entropy, in nats a byte, of predicting each next token: int64 windows [samples, n + 1].
  // REQUIRES: 1 <= n <= config().context, at least one sample.
  at::Tensor Loss(const at::Tensor& windows);

  // The embeddings, each transformer block, each expert in it, and the head with the last LayerNorm. Together
  // they have all parameters.
  std::vector<std::shared_ptr<sherd::torch::ShardedBlock>> sharded_blocks() const;

 private:
  GptConfig config_;
  std::shared_ptr<Affine> wte_, wpe_, ln_f_;
  std::vector<sherd::torch::Sharded<std::shared_ptr<GptBlock>>> blocks_;
  std::shared_ptr<sherd::torch::ShardedBlock> embed_, head_;
  at::Tensor
      mask_;  // [context, context]; not a buffer: it is a function of the config and belongs in no checkpoint
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_GPT_H_

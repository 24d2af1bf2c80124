#include "client/examples/gpt.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "client/examples/text.h"

namespace sherd::examples {
namespace {

constexpr double kNormEpsilon = 1e-5;
constexpr double kInitialDeviation = 0.02;

// FNV-1a of the name over the seed, folded to the 32 bits that torch's CPU generator takes.
uint64_t SeedOf(uint64_t seed, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint8_t byte) { hash = (hash ^ byte) * 0x100000001b3u; };
  for (int i = 0; i < 8; ++i) add(static_cast<uint8_t>(seed >> (8 * i)));
  for (char c : name) add(static_cast<uint8_t>(c));
  return (hash ^ (hash >> 32)) & 0xffffffffu;
}

// A module that only groups others, for the dots in their names.
std::shared_ptr<::torch::nn::Module> Group() { return std::make_shared<::torch::nn::Module>("Group"); }

// Parameters may be bf16 or fp16, activations are fp32: this CPU's libtorch has no arithmetic for fp16, and
// its bf16 is slow. The gradient of a 16-bit parameter is rounded once, on its way back through here.
at::Tensor Wide(const at::Tensor& parameter) {
  return parameter.scalar_type() == at::kFloat ? parameter : parameter.to(at::kFloat);
}

// x weight + bias of 16-bit parameters, in fp32. Backward widens the weight again: autograd's own would keep
// the wide copy of every weight from forward to backward, twice the memory of the parameters themselves,
// which in stage 3 nobody is to have.
struct WideLinear : ::torch::autograd::Function<WideLinear> {
  using Context = ::torch::autograd::AutogradContext;
  static at::Tensor forward(Context* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    context->save_for_backward({x, weight});
    return at::addmm(Wide(bias), x, Wide(weight));
  }
  static ::torch::autograd::tensor_list backward(Context* context, ::torch::autograd::tensor_list gradients) {
    const ::torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &gradient = gradients[0];
    ::torch::autograd::tensor_list out(3);
    if (context->needs_input_grad(0)) out[0] = gradient.mm(Wide(weight).t());
    if (context->needs_input_grad(1)) out[1] = x.t().mm(gradient).to(weight.scalar_type());
    if (context->needs_input_grad(2)) out[2] = gradient.sum(0).to(weight.scalar_type());
    return out;
  }
};

}  // namespace

Affine::Affine(at::IntArrayRef shape, int64_t bias_elements) {
  weight = register_parameter("weight", at::empty(shape, at::kFloat));
  if (bias_elements > 0) bias = register_parameter("bias", at::empty({bias_elements}, at::kFloat));
}

at::Tensor Affine::Linear(const at::Tensor& x) const {
  if (weight.scalar_type() == at::kFloat) return at::addmm(bias, x, weight);
  return WideLinear::apply(x, weight, bias);
}

at::Tensor Affine::Norm(const at::Tensor& x) const {
  return at::layer_norm(x, weight.sizes(), Wide(weight), Wide(bias), kNormEpsilon);
}

FeedForward::FeedForward(::torch::nn::Module* parent, int64_t width)
    : c_fc_(parent->register_module("c_fc",
                                    std::make_shared<Affine>(at::IntArrayRef{width, 4 * width}, 4 * width))),
      c_proj_(parent->register_module("c_proj",
                                      std::make_shared<Affine>(at::IntArrayRef{4 * width, width}, width))) {}

at::Tensor FeedForward::operator()(const at::Tensor& rows) const {
  return c_proj_->Linear(at::gelu(c_fc_->Linear(rows), "tanh"));
}

GptBlock::GptBlock(const GptConfig& config) : heads_(config.heads()) {
  const int64_t d = config.width;
  const auto attn = Group();
  const auto mlp = Group();
  ln_1_ = register_module("ln_1", std::make_shared<Affine>(at::IntArrayRef{d}, d));
  register_module("attn", attn);
  c_attn_ = attn->register_module("c_attn", std::make_shared<Affine>(at::IntArrayRef{d, 3 * d}, 3 * d));
  attn_proj_ = attn->register_module("c_proj", std::make_shared<Affine>(at::IntArrayRef{d, d}, d));
  ln_2_ = register_module("ln_2", std::make_shared<Affine>(at::IntArrayRef{d}, d));
  register_module("mlp", mlp);
  if (config.experts == 0) {
    mlp_ = FeedForward(mlp.get(), d);
    return;
  }
  router_ = mlp->register_module("router", std::make_shared<Affine>(at::IntArrayRef{d, config.experts}, 0));
  const auto experts = mlp->register_module("experts", Group());
  for (int64_t e = 0; e < config.experts; ++e) {
    experts_.emplace_back(experts->register_module(std::to_string(e), std::make_shared<Expert>(d)));
  }
}

at::Tensor GptBlock::Route(const at::Tensor& rows) const {
  at::Tensor probability, choice;
  std::tie(probability, choice) = at::softmax(at::mm(rows, Wide(router_->weight)), -1).max(-1);
  at::Tensor out = at::zeros_like(rows);
  for (size_t e = 0; e < experts_.size(); ++e) {
    const at::Tensor mine = (choice == static_cast<int64_t>(e)).nonzero().squeeze(1);
    if (mine.numel() == 0) continue;
    const at::Tensor weight = probability.index_select(0, mine).unsqueeze(1);
    out = out.index_add(0, mine, experts_[e](rows.index_select(0, mine)) * weight);
  }
  return out;
}

at::Tensor GptBlock::Attention(const at::Tensor& x, const at::Tensor& mask, AttentionCache* cache) const {
  const int64_t samples = x.size(0), tokens = x.size(1), d = x.size(2), size = d / heads_;
  // One copy puts queries, keys and values head by head; unbind, because its backward is one stack, where
  // three selects would be three sums over zeros.
  const std::vector<at::Tensor> qkv = c_attn_->Linear(x.view({-1, d}))
                                          .view({samples, tokens, 3, heads_, size})
                                          .permute({2, 0, 3, 1, 4})
                                          .contiguous()
                                          .view({3, samples * heads_, tokens, size})
                                          .unbind();
  at::Tensor keys = qkv[1], values = qkv[2];
  if (cache != nullptr) {
    if (cache->keys.defined()) {
      keys = at::cat({cache->keys, keys}, 1);
      values = at::cat({cache->values, values}, 1);
    }
    cache->keys = keys;
    cache->values = values;
  }
  // Scale and mask ride along in the product.
  const at::Tensor scores = at::baddbmm(mask, qkv[0], keys.transpose(1, 2), /*beta=*/1,
                                        /*alpha=*/1 / std::sqrt(static_cast<double>(size)));
  const at::Tensor mixed = at::bmm(at::softmax(scores, -1), values)
                               .view({samples, heads_, tokens, size})
                               .transpose(1, 2)
                               .reshape({samples * tokens, d});
  return attn_proj_->Linear(mixed).view({samples, tokens, d});
}

at::Tensor GptBlock::forward(const at::Tensor& x, const at::Tensor& mask, AttentionCache* cache) {
  const int64_t d = x.size(2);
  const at::Tensor y = x + Attention(ln_1_->Norm(x), mask, cache);
  const at::Tensor rows = ln_2_->Norm(y).view({-1, d});
  return y + (experts_.empty() ? mlp_(rows) : Route(rows)).view_as(y);
}

Gpt::Gpt(const GptConfig& config) : config_(config) {
  const int64_t d = config.width;
  wte_ = register_module("wte", std::make_shared<Affine>(at::IntArrayRef{kVocabulary, d}, 0));
  wpe_ = register_module("wpe", std::make_shared<Affine>(at::IntArrayRef{config.context, d}, 0));
  const auto h = register_module("h", Group());
  for (int64_t i = 0; i < config.layers; ++i) {
    blocks_.emplace_back(h->register_module(std::to_string(i), std::make_shared<GptBlock>(config)));
  }
  ln_f_ = register_module("ln_f", std::make_shared<Affine>(at::IntArrayRef{d}, d));
  embed_ = std::make_shared<sherd::torch::ShardedBlock>(*wte_);
  embed_->AlsoUses({wpe_->weight});
  head_ = std::make_shared<sherd::torch::ShardedBlock>(*ln_f_);
  head_->AlsoUses({wte_->weight});
  mask_ = at::full({config.context, config.context}, -std::numeric_limits<float>::infinity()).triu_(1);
}

void Gpt::Initialize(uint64_t seed) {
  ::torch::NoGradGuard no_grad;
  for (auto& item : named_parameters()) {
    const std::string& name = item.key();
    at::Tensor& parameter = item.value();
    if (absl::EndsWith(name, ".bias")) {
      parameter.zero_();
    } else if (absl::StrContains(name, "ln_")) {
      parameter.fill_(1);
    } else {
      const bool into_residual = absl::EndsWith(name, ".c_proj.weight");
      const double deviation = kInitialDeviation / (into_residual ? std::sqrt(2.0 * config_.layers) : 1.0);
      parameter.normal_(0, deviation, at::detail::createCPUGenerator(SeedOf(seed, name)));
    }
  }
}

void Gpt::Freeze(int64_t blocks) {
  std::vector<at::Tensor> frozen = {wte_->weight, wpe_->weight};
  for (int64_t i = 0; i < blocks; ++i) {
    for (const at::Tensor& parameter : blocks_[i].module()->parameters()) frozen.push_back(parameter);
  }
  for (at::Tensor& parameter : frozen) parameter.set_requires_grad(false);
}

at::Tensor Gpt::forward(const at::Tensor& tokens, Cache* cache) {
  const int64_t before = cache == nullptr ? 0 : cache->tokens;
  const int64_t count = tokens.size(1);
  const int64_t all = before + count;
  TORCH_CHECK(count >= 1 && all <= config_.context, "a GPT of ", config_.context, " positions was given ",
              all, " tokens");
  if (cache != nullptr) {
    cache->layers.resize(blocks_.size());
    cache->tokens = all;
  }
  const at::Tensor mask = mask_.slice(0, before, all).slice(1, 0, all);
  at::Tensor x, embeddings;
  std::tie(x, embeddings) = embed_->Call([&] {
    const at::Tensor table = Wide(wte_->weight);  // once: both its uses add up in fp32
    return std::pair(at::embedding(table, tokens) + Wide(wpe_->weight).slice(0, before, all), table);
  });
  for (size_t i = 0; i < blocks_.size(); ++i) {
    x = blocks_[i](x, mask, cache == nullptr ? nullptr : &cache->layers[i]);
  }
  return head_->Call([&] {
    const at::Tensor rows = ln_f_->Norm(x).view({-1, config_.width});
    return at::mm(rows, embeddings.t()).view({tokens.size(0), count, kVocabulary});
  });
}

std::vector<std::shared_ptr<sherd::torch::ShardedBlock>> Gpt::sharded_blocks() const {
  std::vector<std::shared_ptr<sherd::torch::ShardedBlock>> blocks = sherd::torch::BlocksOf(blocks_);
  for (const auto& block : blocks_) {
    const auto experts = sherd::torch::BlocksOf(block.module()->experts());
    blocks.insert(blocks.end(), experts.begin(), experts.end());
  }
  blocks.insert(blocks.begin(), embed_);
  blocks.push_back(head_);
  return blocks;
}

at::Tensor Gpt::Loss(const at::Tensor& windows) {
  const int64_t n = windows.size(1) - 1;
  const at::Tensor logits = forward(windows.slice(1, 0, n));
  return at::cross_entropy_loss(logits.view({-1, kVocabulary}), windows.slice(1, 1, n + 1).reshape({-1}));
}

}  // namespace sherd::examples

// Workload O (bench/README.md): blocks x + gelu(Linear(d, d, no bias)), so large that the optimizer weighs
// more than the arithmetic.
#ifndef SHERD_BENCH_RESIDUAL_MODEL_H_
#define SHERD_BENCH_RESIDUAL_MODEL_H_

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "client/torch/sharded.h"

namespace sherd::bench {

class ResidualModel : public ::torch::nn::Module {
 public:
  ResidualModel(int blocks, int64_t width) {
    for (int b = 0; b < blocks; ++b) {
      layers_.push_back(
          register_module("block" + std::to_string(b),
                          ::torch::nn::Linear(::torch::nn::LinearOptions(width, width).bias(false))));
      blocks_.push_back(std::make_shared<torch::ShardedBlock>(*layers_.back()));
    }
  }
  at::Tensor forward(at::Tensor x) {
    // Parameters may have 16 bits; the arithmetic is fp32, as libtorch's is slow otherwise on most
    // processors.
    for (size_t b = 0; b < layers_.size(); ++b) {
      x = blocks_[b]->Call(
          [&] { return x + ::torch::gelu(at::linear(x, layers_[b]->weight.to(at::kFloat))); });
    }
    return x;
  }
  // What stage 3 gathers and releases.
  const std::vector<std::shared_ptr<torch::ShardedBlock>>& sharded_blocks() const { return blocks_; }
  void DropGradients() {
    for (at::Tensor& p : parameters()) p.mutable_grad().reset();
  }

 private:
  std::vector<::torch::nn::Linear> layers_;
  std::vector<std::shared_ptr<torch::ShardedBlock>> blocks_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_RESIDUAL_MODEL_H_

// Workload O (bench/README.md): blocks x + gelu(Linear(d, d, no bias)), so large that the optimizer weighs
// more than the arithmetic.
#ifndef SHERD_BENCH_RESIDUAL_MODEL_H_
#define SHERD_BENCH_RESIDUAL_MODEL_H_

#include <torch/torch.h>

#include <vector>

namespace sherd::bench {

class ResidualModel : public ::torch::nn::Module {
 public:
  ResidualModel(int blocks, int64_t width) {
    for (int b = 0; b < blocks; ++b) {
      blocks_.push_back(
          register_module("block" + std::to_string(b),
                          ::torch::nn::Linear(::torch::nn::LinearOptions(width, width).bias(false))));
    }
  }
  at::Tensor forward(at::Tensor x) {
    // Parameters may have 16 bits; the arithmetic is fp32, as libtorch's is slow otherwise on most
    // processors.
    for (auto& b : blocks_) x = x + ::torch::gelu(at::linear(x, b->weight.to(at::kFloat)));
    return x;
  }
  void DropGradients() {
    for (at::Tensor& p : parameters()) p.mutable_grad().reset();
  }

 private:
  std::vector<::torch::nn::Linear> blocks_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_RESIDUAL_MODEL_H_

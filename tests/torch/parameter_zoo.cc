#include "tests/torch/parameter_zoo.h"

#include <ATen/ATen.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cstring>
#include <utility>

namespace sherd::tests {
namespace {

// Values that need no generator: the same in every process.
at::Tensor Values(at::IntArrayRef shape, double phase) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return at::sin(at::arange(n, at::kFloat) * 1.3 + phase).mul(0.5).reshape(shape);
}

}  // namespace

ParameterZoo::ParameterZoo()
    : skewed(Values({5, 7}, 1).t().detach()),
      tied(Values({7, 7}, 2)),
      frozen(Values({7}, 3)),
      never(Values({3}, 4)),
      sometimes(Values({5}, 5)),
      empty(Values({0, 3}, 6)),
      scalar(Values({}, 7)),
      big(Values({90, 7}, 8)) {
  for (at::Tensor* t : {&skewed, &tied, &never, &sometimes, &empty, &scalar, &big}) t->requires_grad_(true);
  parameters.insert("skewed", skewed);
  parameters.insert("tied", tied);
  parameters.insert("frozen", frozen);
  parameters.insert("never", never);
  parameters.insert("head.tied", tied);
  parameters.insert("sometimes", sometimes);
  parameters.insert("empty", empty);
  parameters.insert("scalar", scalar);
  parameters.insert("big", big);
}

at::Tensor ParameterZoo::Loss(uint64_t step, SampleRange samples) const {
  at::Tensor sum;
  for (int64_t i = samples.begin; i < samples.end; ++i) {
    const at::Tensor x = at::sin(at::arange(5, at::kFloat) * (0.7 * (i + 1)) + static_cast<double>(step));
    const at::Tensor h = at::tanh(at::mv(skewed, x));
    const at::Tensor z = at::mv(tied.t(), at::tanh(at::mv(tied, h))) * frozen;
    at::Tensor loss = at::mv(big, z).square().mean() + (scalar - 1).square() * z.sum() + empty.sum();
    if (i == 0) loss = loss + (sometimes * x).sum();
    sum = sum.defined() ? sum + loss : loss;
  }
  return sum / static_cast<double>(samples.size());
}

double ZooLearningRate(uint64_t step) { return step < 3 ? 3e-3 : 8e-3; }

std::vector<torch::ParamGroup> ZooGroups() {
  // A large eps: gradients near zero must not blow rounding up.
  const AdamWOptions first = AdamWOptions().lr(1e-2).betas(0.9, 0.95).eps(1e-3).weight_decay(0.1);
  const AdamWOptions second = AdamWOptions().lr(ZooLearningRate(1)).betas(0.8, 0.9).eps(1e-3).weight_decay(0);
  return {{"first", {"skewed", "frozen", "never", "empty", "big"}, first},
          {"second", {"tied", "sometimes", "scalar"}, second}};
}

std::string Flatten(const ParameterZoo& zoo) {
  std::string bytes;
  for (const auto& item : zoo.parameters) {
    const at::Tensor whole = item.value().detach().contiguous();
    bytes.append(static_cast<const char*>(whole.data_ptr()), whole.nbytes());
  }
  return bytes;
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

std::string TrainInOneProcess(int steps) {
  ParameterZoo zoo;
  std::vector<::torch::optim::OptimizerParamGroup> groups;
  std::vector<at::Tensor> all;
  for (const torch::ParamGroup& g : ZooGroups()) {
    std::vector<at::Tensor> tensors;
    for (const std::string& name : g.parameters) tensors.push_back(zoo.parameters[name]);
    const GroupScalars& s = g.options.scalars();
    auto options = std::make_unique<::torch::optim::AdamWOptions>(s[kLr]);
    options->betas({s[kBeta1], s[kBeta2]}).eps(s[kEps]).weight_decay(s[kWeightDecay]);
    all.insert(all.end(), tensors.begin(), tensors.end());
    groups.emplace_back(std::move(tensors), std::move(options));
  }
  ::torch::optim::AdamW adamw(std::move(groups), ::torch::optim::AdamWOptions());
  for (int step = 1; step <= steps; ++step) {
    static_cast<::torch::optim::AdamWOptions&>(adamw.param_groups()[1].options()).lr(ZooLearningRate(step));
    zoo.Loss(step, {0, kZooBatch}).backward();
    ::torch::nn::utils::clip_grad_norm_(all, kZooClip);
    adamw.step();
    for (at::Tensor& t : all) t.mutable_grad().reset();
  }
  return Flatten(zoo);
}

}  // namespace sherd::tests

// ZeroOptimizer over a real server, against libtorch's own AdamW: gradients that are computed in staging,
// gradients that somebody else looks at, tied weights, several micro-batches.
#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "client/options.h"
#include "client/session.h"
#include "client/torch/zero_optimizer.h"
#include "gtest/gtest.h"
#include "tests/control/control_job.h"

namespace sherd::tests {
namespace {

// Weights large enough for gradients in staging, one of them used twice, and a small one.
struct Model : ::torch::nn::Module {
  Model() {
    ::torch::manual_seed(3);
    at::NoGradGuard no_grad;
    for (const char* name : {"a", "b", "tied"}) {
      register_parameter(name, at::randn({kWidth, kWidth}) * 0.05);
    }
    register_parameter("bias", at::zeros({kWidth}));
  }
  at::Tensor forward(at::Tensor x) {
    auto p = named_parameters();
    x = x.matmul(p["tied"]).tanh();
    x = at::linear(x, p["a"], p["bias"]).tanh();
    x = x.matmul(p["b"]).tanh();
    return x.matmul(p["tied"]);
  }
  static constexpr int64_t kWidth = 300;
};

at::Tensor Input(int step, int micro) {
  ::torch::manual_seed(100 * step + micro);
  return at::randn({4, Model::kWidth});
}

constexpr int kSteps = 6;

std::vector<at::Tensor> Reference(int micros) {
  Model model;
  ::torch::optim::AdamW adamw(model.parameters(), ::torch::optim::AdamWOptions(1e-2).weight_decay(0.1));
  for (int step = 1; step <= kSteps; ++step) {
    adamw.zero_grad();
    for (int micro = 0; micro < micros; ++micro) {
      (model.forward(Input(step, micro)).square().mean() / micros).backward();
    }
    ::torch::nn::utils::clip_grad_norm_(model.parameters(), 0.1);
    adamw.step();
  }
  return model.parameters();
}

class GradientsInStagingTest : public ::testing::TestWithParam<std::tuple<int, int, bool>> {};

TEST_P(GradientsInStagingTest, TrainsAsLibtorchDoes) {
  const auto [stage, micros, looked_at] = GetParam();
  const std::vector<at::Tensor> expected = Reference(micros);
  ControlJob job({"s0"});
  SessionOptions where;
  where.endpoints = job.Address("s0");
  where.job = "ctl";
  auto session = Session::Connect(where);
  ASSERT_TRUE(session.ok()) << session.status();
  Model model;
  // A unit of its own for each large weight.
  auto zero = torch::ZeroOptimizer::Create(
      **session, model.named_parameters(), AdamWOptions().lr(1e-2).weight_decay(0.1),
      ZeroOptions().stage(stage).max_grad_norm(0.1).accumulation(micros).bucket_elements(1000));
  ASSERT_TRUE(zero.ok()) << zero.status();
  std::vector<at::Tensor> seen, copies;
  if (looked_at) {
    for (at::Tensor& p : model.parameters()) {
      p.register_hook([&](at::Tensor grad) {
        seen.push_back(grad);
        copies.push_back(grad.clone());
      });
    }
  }
  for (int step = 1; step <= kSteps; ++step) {
    for (int micro = 0; micro < micros; ++micro) {
      ASSERT_TRUE((*zero)->Begin());
      model.forward(Input(step, micro)).square().mean().backward();
      auto info = (*zero)->Step();
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->complete, micro + 1 == micros);
    }
    // What somebody kept stays as it was, wherever the gradients went.
    for (size_t i = 0; i < seen.size(); ++i) EXPECT_TRUE(at::equal(seen[i], copies[i]));
    if (step % 2 == 0) seen.clear(), copies.clear();
  }
  const std::vector<at::Tensor> got = model.parameters();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::allclose(got[i], expected[i], 1e-4, 1e-6)) << i;
  if (!looked_at && micros == 1) {
    // The small weight's gradients are copied; and those of the tied one, whose parts and sum need more
    // places than there are, if owners have not freed one meanwhile.
    const int64_t small = Model::kWidth * 4, large = Model::kWidth * small;
    EXPECT_LE((*zero)->traffic().staged_bytes, kSteps * (small + large));
  }
  EXPECT_TRUE((*zero)->Detach().ok());
}

INSTANTIATE_TEST_SUITE_P(All, GradientsInStagingTest,
                         ::testing::Combine(::testing::Values(0, 1, 2), ::testing::Values(1, 2),
                                            ::testing::Bool()));

}  // namespace
}  // namespace sherd::tests

#include "client/torch/meta_init.h"

#include <ATen/ATen.h>
#include <torch/torch.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "gtest/gtest.h"

namespace sherd::torch {
namespace {

using Kind = Initialiser::Kind;

Initialiser HowOf(const at::Tensor& t) {
  const std::optional<NotedValues> noted = NotedOf(t);
  EXPECT_TRUE(noted.has_value() && noted->how.has_value());
  return noted.has_value() ? noted->how.value_or(Initialiser()) : Initialiser();
}

// What `fn` throws, first line.
template <typename Fn>
std::string Thrown(const Fn& fn) {
  try {
    fn();
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  }
  return "nothing";
}

TEST(MetaInitTest, ModulesNoteTheirInitialisers) {
  std::optional<MetaInit> meta(std::in_place, 7);
  ::torch::nn::Linear linear(100, 40);
  ::torch::nn::LayerNorm norm(::torch::nn::LayerNormOptions({32}));
  ::torch::nn::Embedding table(1 << 20, 1 << 12);  // 16 GiB
  ::torch::nn::Conv2d conv(3, 8, 5);
  ::torch::nn::LSTM lstm(8, 16);
  const at::Tensor ordinary = at::arange(6).to(at::kFloat) * 2;  // of any other making
  meta.reset();
  // Kaiming uniform with a = sqrt(5): 1 / sqrt(fan in).
  const Initialiser weight = HowOf(linear->weight);
  EXPECT_EQ(weight.kind, Kind::kUniform);
  EXPECT_NEAR(weight.a, -0.1, 1e-12);
  EXPECT_NEAR(weight.b, 0.1, 1e-12);
  EXPECT_EQ(HowOf(linear->bias).kind, Kind::kUniform);
  EXPECT_EQ(HowOf(norm->weight), (Initialiser{Kind::kConstant, 1, 0}));
  EXPECT_EQ(HowOf(norm->bias), (Initialiser{Kind::kConstant, 0, 0}));
  EXPECT_EQ(HowOf(table->weight), (Initialiser{Kind::kNormal, 0, 1}));
  EXPECT_EQ(HowOf(conv->weight).kind, Kind::kUniform);
  for (const at::Tensor& p : lstm->parameters()) EXPECT_NEAR(HowOf(p).b, 0.25, 1e-12);
  EXPECT_TRUE(linear->weight.requires_grad());
  EXPECT_EQ(NotedOf(linear->weight)->seed, 7u);
  EXPECT_FALSE(NotedOf(ordinary).has_value());
  EXPECT_EQ(ordinary[5].item<float>(), 10);
  EXPECT_FALSE(NotedOf(at::empty({3})).has_value());  // after the scope
}

TEST(MetaInitTest, TheLastInitialiserCounts) {
  const MetaInit meta(1);
  const at::Tensor t = ::torch::empty({4, 4});
  EXPECT_FALSE(NotedOf(t)->how.has_value());
  ::torch::nn::init::xavier_normal_(t);
  EXPECT_EQ(HowOf(t).kind, Kind::kNormal);
  t.uniform_(-1, 3);
  t.mul_(0.5);
  EXPECT_EQ(HowOf(t), (Initialiser{Kind::kUniform, -0.5, 1.5}));
  t.view({16}).zero_();  // the whole, seen otherwise
  EXPECT_EQ(HowOf(t), (Initialiser{Kind::kConstant, 0, 0}));
}

TEST(MetaInitTest, WhatNeedsValuesSaysSo) {
  const MetaInit meta(1);
  const at::Tensor t = ::torch::empty({4, 4});
  EXPECT_NE(Thrown([&] { t.clone(); }).find("aten::clone needs the values of a parameter of shape [4, 4]"),
            std::string::npos);
  EXPECT_NE(Thrown([&] { t.add_(1); }).find("aten::add_"), std::string::npos);
  EXPECT_NE(Thrown([&] { at::cat({t, t}); }).find("aten::cat"), std::string::npos);
  EXPECT_NE(Thrown([&] { t.mul_(2); }).find("after it was initialised"), std::string::npos);
  EXPECT_NE(Thrown([&] { t.select(0, 1).zero_(); }).find("a part of a parameter"), std::string::npos);
  EXPECT_NE(Thrown([&] { MetaInit inner(1); }).find("inside another"), std::string::npos);
  EXPECT_EQ(Thrown([&] {
              ::torch::empty({0, 3}).zero_(), ::torch::empty({2}, at::kLong).zero_();
            }),
            "nothing");
}

TEST(MetaInitTest, BuffersGetTheirValues) {
  std::optional<MetaInit> meta(std::in_place, 1);
  ::torch::nn::BatchNorm1d norm(8);
  meta.reset();
  at::Tensor mean = norm->running_mean, variance = norm->running_var, count = norm->num_batches_tracked;
  Materialise("running_mean", &mean);
  Materialise("running_var", &variance);
  Materialise("num_batches_tracked", &count);
  EXPECT_EQ(norm->running_mean.sum().item<float>(), 0);
  EXPECT_EQ(norm->running_var.sum().item<float>(), 8);
  at::Tensor weight = norm->weight;
  EXPECT_TRUE(NotedOf(weight).has_value());
}

using MetaInitDeathTest = ::testing::Test;
TEST(MetaInitDeathTest, AUseAfterTheScopeIsNamed) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        std::optional<MetaInit> meta(std::in_place, 1);
        const at::Tensor t = ::torch::empty({3, 5});
        meta.reset();
        std::printf("%f", t.sum().item<double>());
      },
      "a use of parameter \\[3, 5\\] \\(of a MetaInit\\)");
}

}  // namespace
}  // namespace sherd::torch

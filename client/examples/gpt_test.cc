#include "client/examples/gpt.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <memory>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "client/examples/generate.h"
#include "client/examples/gpt_config.h"

namespace sherd::examples {
namespace {

GptConfig Tiny(int64_t context) { return *GptConfig::Named("tiny", context); }

std::shared_ptr<Gpt> NewModel(const GptConfig& config, uint64_t seed) {
  auto model = std::make_shared<Gpt>(config);
  model->Initialize(seed);
  return model;
}

at::Tensor Windows(int64_t samples, int64_t length) {
  return (at::arange(samples * length, at::kLong) * 7919 % 251).view({samples, length});
}

TEST(GptConfig, SizesCount) {
  EXPECT_EQ(ParameterCount(Tiny(128)), 445952);
  EXPECT_EQ(ParameterCount(*GptConfig::Named("small", 128)), 10795008);
  EXPECT_EQ(ParameterCount(*GptConfig::Named("gpt2", 1024)), 86039040);
  EXPECT_EQ(ParameterCount(*GptConfig::Named("gpt2-xl", 1024)), 1477609600);
  EXPECT_FALSE(GptConfig::Named("huge", 128).ok());
}

TEST(GptConfig, ComesBackFromShapes) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {{"exp_avg/wte.weight", {1}}};
  for (const ParameterSpec& spec : ParameterSpecs(Tiny(64))) shapes.emplace_back(spec.name, spec.shape);
  const absl::StatusOr<GptConfig> config = GptConfig::FromShapes(shapes);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 2);
  EXPECT_EQ(config->width, 128);
  EXPECT_EQ(config->context, 64);
  for (size_t i = 1; i < shapes.size(); ++i) {
    auto damaged = shapes;
    damaged[i].second[0] += 1;
    // The rows of wpe are the context: any number of them is a model.
    EXPECT_EQ(GptConfig::FromShapes(damaged).ok(), shapes[i].first == "wpe.weight") << shapes[i].first;
    damaged = shapes;
    damaged.erase(damaged.begin() + i);
    EXPECT_FALSE(GptConfig::FromShapes(damaged).ok()) << shapes[i].first;
  }
  shapes.emplace_back("h.9000000000000000000.ln_1.weight", std::vector<int64_t>{128});
  EXPECT_FALSE(GptConfig::FromShapes(shapes).ok());
}

TEST(GptConfig, OnlyTheMatricesOfBlocksDecay) {
  std::set<std::string> decayed;
  for (const ParameterSpec& spec : ParameterSpecs(Tiny(64))) {
    if (IsDecayed(spec.name)) decayed.insert(spec.name);
  }
  EXPECT_EQ(decayed.size(), 8u);
  EXPECT_TRUE(decayed.count("h.1.mlp.c_fc.weight"));
}

TEST(Gpt, ParametersAreThoseOfTheConfig) {
  const Gpt model(Tiny(32));
  const auto parameters = model.named_parameters();
  const auto specs = ParameterSpecs(Tiny(32));
  ASSERT_EQ(parameters.size(), specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(parameters[i].key(), specs[i].name);
    EXPECT_EQ(parameters[i].value().sizes().vec(), specs[i].shape) << specs[i].name;
  }
  EXPECT_EQ(model.named_buffers().size(), 0u);
}

TEST(Gpt, InitialValuesDependOnSeedAndNameAlone) {
  const auto a = NewModel(Tiny(32), 1), b = NewModel(Tiny(32), 1), c = NewModel(Tiny(32), 2);
  GptConfig deeper = Tiny(32);
  deeper.layers = 3;
  const auto d = NewModel(deeper, 1);
  for (const auto& item : a->named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), b->named_parameters()[item.key()])) << item.key();
    const bool random =
        item.key().find("ln_") == std::string::npos && item.key().find("bias") == std::string::npos;
    EXPECT_EQ(at::equal(item.value(), c->named_parameters()[item.key()]), !random) << item.key();
    const bool scaled_by_depth = item.key().find("c_proj.weight") != std::string::npos;
    EXPECT_EQ(at::equal(item.value(), d->named_parameters()[item.key()]), !scaled_by_depth) << item.key();
  }
  const auto parameters = a->named_parameters();
  EXPECT_FALSE(at::equal(parameters["h.0.mlp.c_fc.weight"], parameters["h.1.mlp.c_fc.weight"]));
  EXPECT_NEAR(parameters["h.0.mlp.c_fc.weight"].std().item<double>(), 0.02, 0.001);
  EXPECT_NEAR(parameters["h.0.mlp.c_proj.weight"].std().item<double>(), 0.01, 0.0005);
}

TEST(Gpt, LooksBackOnly) {
  const auto model = NewModel(Tiny(16), 3);
  at::Tensor tokens = Windows(2, 16);
  const at::Tensor before = model->forward(tokens);
  tokens[0][9] = 255;
  const at::Tensor after = model->forward(tokens);
  EXPECT_TRUE(at::equal(before[0].slice(0, 0, 9), after[0].slice(0, 0, 9)));
  EXPECT_FALSE(at::equal(before[0].slice(0, 9, 10), after[0].slice(0, 9, 10)));
  EXPECT_FALSE(at::equal(before[0].slice(0, 15, 16), after[0].slice(0, 15, 16)));
  EXPECT_TRUE(at::equal(before[1], after[1]));
}

TEST(Gpt, FirstLossIsThatOfAGuess) {
  const auto model = NewModel(Tiny(64), 1);
  EXPECT_NEAR(model->Loss(Windows(2, 65)).item<double>(), 5.545, 0.15);  // log 256
}

TEST(Gpt, LossIsTheMeanOverSamples) {
  const auto model = NewModel(Tiny(32), 1);
  const at::Tensor windows = Windows(4, 33);
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += model->Loss(windows.slice(0, i, i + 1)).item<double>();
  EXPECT_NEAR(model->Loss(windows).item<double>(), sum / 4, 1e-6);
}

TEST(Gpt, EveryParameterGetsAGradientAndTheSameOneTwice) {
  std::vector<at::Tensor> first;
  for (int run = 0; run < 2; ++run) {
    const auto model = NewModel(Tiny(32), 1);
    model->Loss(Windows(3, 33)).backward();
    size_t i = 0;
    for (const auto& item : model->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_GT(item.value().grad().norm().item<double>(), 0) << item.key();
      if (run == 0) {
        first.push_back(item.value().grad());
      } else {
        EXPECT_TRUE(at::equal(first[i++], item.value().grad())) << item.key();
      }
    }
  }
}

// Widened for the arithmetic, and their gradients rounded once.
TEST(Gpt, GradientsOf16BitParametersAreThoseOfWideOnes) {
  const auto narrow = NewModel(Tiny(32), 1);
  narrow->to(at::kBFloat16);
  const auto wide = NewModel(Tiny(32), 1);
  const auto parameters = wide->named_parameters();
  {
    ::torch::NoGradGuard no_grad;
    for (auto& item : narrow->named_parameters())
      parameters[item.key()].set_data(item.value().to(at::kFloat));
  }
  const at::Tensor windows = Windows(3, 33);
  const at::Tensor loss = narrow->Loss(windows), same = wide->Loss(windows);
  EXPECT_TRUE(at::equal(loss, same));
  loss.backward();
  same.backward();
  for (const auto& item : narrow->named_parameters()) {
    const at::Tensor want = parameters[item.key()].grad().to(at::kBFloat16);
    EXPECT_TRUE(at::equal(item.value().grad(), want)) << item.key();
  }
}

TEST(Gpt, FrozenParametersGetNoGradient) {
  for (const bool narrow : {false, true}) {
    const auto model = NewModel(Tiny(32), 1);
    if (narrow) model->to(at::kBFloat16);
    model->Freeze(1);
    model->Loss(Windows(3, 33)).backward();
    for (const auto& item : model->named_parameters()) {
      const bool trained = absl::StartsWith(item.key(), "h.1.") || absl::StartsWith(item.key(), "ln_f.");
      EXPECT_EQ(item.value().grad().defined(), trained) << item.key();
    }
  }
}

TEST(Gpt, ParametersMayMoveBetweenSteps) {
  const auto model = NewModel(Tiny(32), 1);
  const double before = model->Loss(Windows(1, 33)).item<double>();
  ::torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) item.value().set_data(item.value().clone());
  EXPECT_EQ(model->Loss(Windows(1, 33)).item<double>(), before);
  for (auto& item : model->named_parameters()) item.value().zero_();
  EXPECT_NE(model->Loss(Windows(1, 33)).item<double>(), before);
}

TEST(Gpt, CacheChangesNothing) {
  ::torch::NoGradGuard no_grad;
  const auto model = NewModel(Tiny(16), 5);
  const at::Tensor tokens = Windows(1, 16);
  const at::Tensor at_once = model->forward(tokens);
  Gpt::Cache cache;
  at::Tensor pieces =
      at::cat({model->forward(tokens.slice(1, 0, 5), &cache), model->forward(tokens.slice(1, 5, 6), &cache),
               model->forward(tokens.slice(1, 6, 16), &cache)},
              1);
  EXPECT_TRUE(at::allclose(at_once, pieces, 1e-5, 1e-5));
  EXPECT_ANY_THROW(model->forward(tokens.slice(1, 0, 1), &cache));  // the context is full
}

TEST(Generate, IsDeterministicAndGoesPastTheContext) {
  const auto model = NewModel(Tiny(16), 1);
  GenerateOptions options;
  options.tokens = 50;
  const std::string text = Generate(*model, "a prompt that is longer than the context", options);
  EXPECT_EQ(text.size(), 50u);
  EXPECT_EQ(text, Generate(*model, "a prompt that is longer than the context", options));
  options.seed = 2;
  EXPECT_NE(text, Generate(*model, "a prompt that is longer than the context", options));
  options.top_k = 1;
  const std::string likeliest = Generate(*model, "", options);
  options.top_k = 0;
  options.temperature = 0;
  EXPECT_EQ(likeliest, Generate(*model, "", options));
}

TEST(Printable, KeepsTextAndNothingElse) {
  EXPECT_EQ(Printable("a\tb\n"), "a\tb\n");
  EXPECT_EQ(Printable("\x1b[2J\r\x7f"), "?[2J??");
  EXPECT_EQ(Printable("Gr\xc3\xbc\xc3\x9f"
                      "e \xe2\x82\xac \xf0\x9f\x98\x80"),
            "Grüße € 😀");
  EXPECT_EQ(Printable("\xc3"), "?");                      // torn
  EXPECT_EQ(Printable("\xc2\x9bx"), "??x");               // a control character in two bytes
  EXPECT_EQ(Printable("\xed\xa0\x80"), "???");            // a surrogate
  EXPECT_EQ(Printable("\xc0\xaf\xe0\x80\xaf"), "?????");  // overlong
}

}  // namespace
}  // namespace sherd::examples

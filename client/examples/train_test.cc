// The reference run from flags to file.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/examples/gpt.h"
#include "client/examples/reference_trainer.h"
#include "client/examples/sherd_trainer.h"
#include "client/examples/train_loop.h"
#include "client/examples/train_options.h"
#include "client/examples/weights.h"

namespace sherd::examples {
namespace {

absl::StatusOr<std::optional<TrainOptions>> Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "train_gpt");
  return ParseTrainOptions(arguments.size(), arguments.data());
}

std::string TempPath(const std::string& name) { return testing::TempDir() + "/" + name; }

Text SmallText() {
  std::string bytes;
  for (int i = 0; i < 400; ++i) bytes += "the quick brown fox jumps over the lazy dog; ";
  return Text("fox", bytes);
}

struct Outcome {
  std::vector<nlohmann::json> steps;
  std::string results;
  std::shared_ptr<Gpt> model;
};

Outcome Train(TrainOptions options, const std::string& name) {
  Outcome run;
  options.json = TempPath(name + ".json");
  if (options.lr == 0) options.lr = 3e-3;
  options.context = 32;
  const Text text = SmallText();
  run.model = std::make_shared<Gpt>(*GptConfig::Named(options.size, options.context));
  run.model->Initialize(options.seed);
  const std::unique_ptr<Trainer> trainer = MakeReferenceTrainer(run.model, options);
  char* bytes = nullptr;
  size_t size = 0;
  Console console;
  console.results = open_memstream(&bytes, &size);
  console.progress = fopen("/dev/null", "w");
  const absl::Status status = TrainLoop(options, text, *run.model, *trainer, console);
  EXPECT_TRUE(status.ok()) << status;
  fclose(console.progress);
  fclose(console.results);
  run.results.assign(bytes, size);
  free(bytes);
  std::ifstream in(options.json);
  for (std::string line; std::getline(in, line);) run.steps.push_back(nlohmann::json::parse(line));
  return run;
}

double HeldOutOf(const std::string& results) {
  const std::string key = "held-out loss ";
  return std::stod(results.substr(results.rfind(key) + key.size()));
}

TEST(TrainOptions, Defaults) {
  const auto options = Parse({});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ((*options)->size, "tiny");
  EXPECT_EQ((*options)->lr, 1e-3);
  EXPECT_EQ((*Parse({"--size", "small"}))->lr, 6e-4);
  EXPECT_EQ((*Parse({"--size", "small", "--lr", "0"}))->lr, 0);
  EXPECT_EQ((*Parse({"--micro-batches", "3"}))->accumulation, 3);
  EXPECT_EQ((*options)->compute, DType::kFloat32);
  EXPECT_EQ((*Parse({"--precision", "bf16"}))->compute, DType::kBFloat16);
  EXPECT_EQ((*Parse({"--loss-scale", "0"}))->loss_scale, DynamicLossScale());
  EXPECT_EQ((*Parse({"--loss-scale", "128"}))->loss_scale->initial, 128);
}

TEST(TrainOptions, UsageErrorsAreOneLine) {
  const std::vector<std::vector<const char*>> wrong = {
      {"--no-such-flag"},
      {"--size", "huge"},
      {"--steps", "-1"},
      {"--steps", "x"},
      {"--global-batch", "0"},
      {"--context", "0"},
      {"--stage", "4"},
      {"--accumulation", "0"},
      {"--clip", "-1"},
      {"--lr", "nan"},
      {"--json"},
      {"stray"},
      {"--seed", "1.5"},
      {"--lr", "-0.1"},
      {"--precision", "fp8"},
      {"--loss-scale", "-1"},
      {"--reference", "--precision", "bf16", "--stochastic-rounding"}};
  for (const auto& arguments : wrong) {
    const auto options = Parse(arguments);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument) << arguments[0];
    EXPECT_EQ(options.status().message().find('\n'), absl::string_view::npos) << options.status();
  }
}

TEST(Train, LossFallsAndTheRunRepeats) {
  TrainOptions options;
  options.steps = 40;
  options.global_batch = 4;
  options.eval_every = 20;
  options.generate = 10;
  const Outcome a = Train(options, "a"), b = Train(options, "b");
  ASSERT_EQ(a.steps.size(), 40u);
  EXPECT_GT(a.steps[0]["loss"], 5.3);
  EXPECT_LT(a.steps[39]["loss"], 2.5);
  EXPECT_LT(HeldOutOf(a.results), 2.5);
  EXPECT_EQ(a.steps[39]["tokens"], 40 * 4 * 32);
  EXPECT_EQ(a.steps[39]["step"], 40);
  EXPECT_EQ(a.results, b.results);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(a.steps[i]["loss"], b.steps[i]["loss"]) << i;
    EXPECT_EQ(a.steps[i]["grad_norm"], b.steps[i]["grad_norm"]) << i;
  }
  for (const auto& item : a.model->named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), b.model->named_parameters()[item.key()])) << item.key();
  }
}

TEST(Train, MicroBatchesOfAnySizeAddUpToTheBatch) {
  TrainOptions options;
  options.steps = 10;
  options.global_batch = 5;
  const Outcome whole = Train(options, "whole");
  for (int64_t micros : {2, 3, 7}) {  // 7: two of them are empty
    options.accumulation = micros;
    const Outcome parts = Train(options, "parts");
    ASSERT_EQ(parts.steps.size(), 10u);
    for (int i = 0; i < 10; ++i) {
      EXPECT_NEAR(whole.steps[i]["loss"], parts.steps[i]["loss"], 1e-4) << i;
      EXPECT_NEAR(whole.steps[i]["grad_norm"], parts.steps[i]["grad_norm"], 1e-3) << i;
    }
  }
}

// Masters in fp32, the model a rounded copy: the losses of fp32, nearly; the loss scale changes nothing of
// it.
TEST(Train, SixteenBitsTrainAlike) {
  TrainOptions options;
  options.steps = 30;
  options.global_batch = 4;
  options.accumulation = 2;
  options.lr = 5e-4;  // at larger ones so small a batch is chaotic
  const Outcome fp32 = Train(options, "fp32");
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    options.compute = dtype;
    options.loss_scale = LossScaleSpec();
    if (dtype == DType::kFloat16) options.loss_scale->initial = 1024;
    const Outcome half = Train(options, "half");
    EXPECT_NE(half.model->parameters()[0].scalar_type(), at::kFloat);
    EXPECT_EQ(half.steps[0].value("loss_scale", 1.0), dtype == DType::kFloat16 ? 1024 : 1);
    for (int i = 0; i < 30; ++i) EXPECT_NEAR(half.steps[i]["loss"], fp32.steps[i]["loss"], 0.03) << i;
  }
}

TEST(Train, DecayReachesTheMatricesOfBlocksAlone) {
  TrainOptions options;
  options.steps = 1;
  options.weight_decay = 0;
  const Outcome without = Train(options, "without");
  options.weight_decay = 1;
  const Outcome with = Train(options, "with");
  for (const auto& item : without.model->named_parameters()) {
    EXPECT_EQ(at::equal(item.value(), with.model->named_parameters()[item.key()]), !IsDecayed(item.key()))
        << item.key();
  }
}

TEST(Train, NoStepsSavesTheInitialModel) {
  TrainOptions options;
  options.steps = 0;
  options.save = TempPath("initial.safetensors");
  const Outcome run = Train(options, "none");
  EXPECT_EQ(run.steps.size(), 0u);
  const auto loaded = LoadWeights(options.save);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->config().context, 32);
  for (const auto& item : run.model->named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), (*loaded)->named_parameters()[item.key()])) << item.key();
  }
}

TEST(Weights, ErrorsNameTheFile) {
  EXPECT_EQ(LoadWeights(TempPath("absent")).status().code(), absl::StatusCode::kNotFound);
  const std::string path = TempPath("not.safetensors");
  std::ofstream(path) << "this is not a model";
  const absl::Status status = LoadWeights(path).status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(path), std::string::npos) << status;
  EXPECT_FALSE(SaveWeights(Gpt(*GptConfig::Named("tiny", 8)), "/no/such/dir/x.safetensors").ok());
}

TEST(SherdTrainer, WithoutAnEndpointSaysWhatToDo) {
  const absl::Status status = MakeSherdTrainer("", nullptr, TrainOptions(), SamplerState()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("--reference"), std::string::npos);
}

}  // namespace
}  // namespace sherd::examples

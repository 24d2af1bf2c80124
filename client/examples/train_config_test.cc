#include "client/examples/train_config.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::examples {
namespace {

using ::testing::HasSubstr;

TrainOptions Flags(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "train_gpt");
  const auto options = ParseTrainOptions(static_cast<int>(arguments.size()), arguments.data());
  EXPECT_TRUE(options.ok()) << options.status();
  return **options;
}

absl::Status Apply(const std::string& text, TrainOptions* options, int world_size = 2) {
  const auto file = DeepSpeedConfig::Parse(text, "ds.json");
  EXPECT_TRUE(file.ok()) << file.status();
  return ApplyConfig(*file, world_size, options);
}

std::string ErrorOf(const std::string& text, const std::vector<const char*>& arguments) {
  TrainOptions options = Flags(arguments);
  return std::string(Apply(text, &options).message());
}

TEST(TrainConfig, TheFileReplacesDefaults) {
  TrainOptions options = Flags({});
  ASSERT_TRUE(Apply(R"({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2,
      "gradient_clipping": 0.5, "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
      "optimizer": {"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.2, "betas": [0.8, 0.9]}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7}}})",
                    &options)
                  .ok());
  EXPECT_EQ(options.global_batch, 12);
  EXPECT_EQ(options.accumulation, 2);
  EXPECT_EQ(options.clip, 0.5);
  EXPECT_EQ(options.stage, 1);
  EXPECT_EQ(options.bucket_elements, 1000);
  EXPECT_EQ(options.optimizer, "adamw");
  const OptimizerOptions decayed = ChooseOptimizer(options, options.weight_decay, true);
  EXPECT_EQ(decayed.scalars()[kLr], 0.01);
  EXPECT_EQ(decayed.scalars()[kBeta1], 0.8);
  EXPECT_EQ(decayed.scalars()[kWeightDecay], 0.2);
  EXPECT_EQ(ChooseOptimizer(options, 0, false).scalars()[kWeightDecay],
            0);  // what does not decay still does not
  const auto schedule = ChooseSchedule(options, options.steps);
  ASSERT_TRUE(schedule.ok() && schedule->has_value());
  EXPECT_EQ((*schedule)->name(), "WarmupLR");
}

TEST(TrainConfig, AutoIsWhatTheFlagsHave) {
  const std::string text = R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
      "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
      "optimizer": {"type": "SGD", "params": {"lr": "auto", "weight_decay": "auto"}},
      "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})";
  TrainOptions options = Flags({"--size", "small", "--global-batch", "6", "--accumulation", "3"});
  ASSERT_TRUE(Apply(text, &options).ok());
  EXPECT_EQ(options.global_batch, 6);
  EXPECT_EQ(options.accumulation, 3);
  EXPECT_EQ(options.clip, 1.0);
  EXPECT_EQ(options.bucket_elements, 384 * 384);
  EXPECT_EQ(ChooseOptimizer(options, 0, false).scalars()[kLr],
            1e-3);  // that of SGD, not AdamW's for this size
  EXPECT_EQ(options.weight_decay, 0.1);
  TrainOptions own = Flags({"--lr", "0.5"});
  ASSERT_TRUE(Apply(text, &own).ok());
  EXPECT_EQ(ChooseOptimizer(own, 0, false).scalars()[kLr], 0.5);
}

TEST(TrainConfig, MuonHasTwoRates) {
  TrainOptions options = Flags({});
  ASSERT_TRUE(
      Apply(R"({"optimizer": {"type": "Muon", "params": {"muon_lr": 0.05, "adam_lr": 0.001}}})", &options)
          .ok());
  const OptimizerOptions hidden = ChooseOptimizer(options, 0.1, true),
                         others = ChooseOptimizer(options, 0, false);
  EXPECT_EQ(hidden.kind(), OptimizerKind::kMuon);
  EXPECT_EQ(hidden.scalars()[kLr], 0.05);
  EXPECT_GT(hidden.scalars()[kNsSteps], 0);
  EXPECT_EQ(others.scalars()[kLr], 0.001);
  EXPECT_EQ(others.scalars()[kNsSteps], 0);
}

TEST(TrainConfig, WithoutASectionTheProgramsOwnCounts) {
  TrainOptions options = Flags({"--schedule", "cosine", "--optimizer", "lion"});
  ASSERT_TRUE(Apply("{}", &options).ok());
  EXPECT_EQ(ChooseOptimizer(options, 0, false).kind(), OptimizerKind::kLion);
  EXPECT_EQ((*ChooseSchedule(options, 10))->name(), "cosine");
  EXPECT_EQ(options.stage, 0);  // DeepSpeed's default: the file has no ZeRO
}

TEST(TrainConfig, CyclesSpanTheTraining) {
  TrainOptions options = Flags({"--schedule", "OneCycle", "--lr", "0.5", "--steps", "9"});
  const Schedule cycle = **ChooseSchedule(options, options.steps);
  EXPECT_EQ(cycle.Rate(0, 1), 0.05);
  EXPECT_NEAR(cycle.Rate(4, 1), 0.5, 1e-15);
  EXPECT_NEAR(cycle.Rate(9, 1), 0.05, 1e-15);
  options = Flags({"--schedule", "LRRangeTest", "--lr", "0.5", "--steps", "100"});
  EXPECT_NEAR((*ChooseSchedule(options, options.steps))->Rate(20, 1), 1.5, 1e-15);
  const char* warm[] = {"train_gpt", "--schedule", "OneCycle", "--warmup", "3"};
  EXPECT_THAT(std::string(ParseTrainOptions(5, warm).status().message()), HasSubstr("it has no warm-up"));
  EXPECT_TRUE(ChooseSchedule(Flags({"--schedule", "OneCycle", "--steps", "1"}), 1).ok());
}

TEST(TrainConfig, Precision) {
  const std::string fp16 = R"({"fp16": {"enabled": true, "initial_scale_power": 8}})";
  TrainOptions options = Flags({});
  ASSERT_TRUE(Apply(fp16, &options).ok());
  EXPECT_EQ(options.compute, DType::kFloat16);
  EXPECT_TRUE(options.loss_scale->dynamic);
  EXPECT_EQ(options.loss_scale->initial, 256);
  EXPECT_FALSE(options.communication.has_value());
  options = Flags({"--precision", "bf16"});
  ASSERT_TRUE(Apply(R"({"bf16": {"enabled": "auto"}, "communication_data_type": "fp32"})", &options).ok());
  EXPECT_EQ(options.compute, DType::kBFloat16);
  EXPECT_EQ(*options.communication, DType::kFloat32);
  options = Flags({"--loss-scale", "64"});
  ASSERT_TRUE(Apply(fp16, &options).ok());
  EXPECT_FALSE(options.loss_scale->dynamic);
  EXPECT_EQ(options.loss_scale->initial, 64);
  EXPECT_THAT(ErrorOf(fp16, {"--precision", "bf16"}), HasSubstr("--precision says bf16"));
  EXPECT_THAT(ErrorOf(R"({"fp16": {"enabled": true, "loss_scale": 128}})", {"--loss-scale", "64"}),
              HasSubstr("--loss-scale says 64"));
}

TEST(TrainConfig, ContradictionsNameBoth) {
  EXPECT_THAT(ErrorOf(R"({"gradient_clipping": 2})", {"--clip", "1"}),
              HasSubstr("gradient_clipping is 2, but --clip"));
  EXPECT_THAT(ErrorOf(R"({"zero_optimization": {"stage": 3}})", {"--stage", "1"}),
              HasSubstr("--stage says 1"));
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 8})", {"--global-batch", "6"}),
              HasSubstr("--global-batch says 6"));
  EXPECT_THAT(ErrorOf(R"({"gradient_accumulation_steps": 8})", {"--micro-batches", "2"}),
              HasSubstr("--accumulation says 2"));
  EXPECT_THAT(ErrorOf(R"({"optimizer": {"type": "SGD"}})", {"--optimizer", "lion"}),
              HasSubstr("optimizer.type comes to sgd, but --optimizer says lion"));
  EXPECT_THAT(ErrorOf(R"({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}})", {"--lr", "0.2"}),
              HasSubstr("--lr says 0.2"));
  EXPECT_THAT(ErrorOf(R"({"scheduler": {"type": "WarmupLR"}})", {"--schedule", "cosine"}),
              HasSubstr("scheduler.type comes to WarmupLR, but --schedule says cosine"));
  EXPECT_THAT(ErrorOf(R"({"train_batch_size": 7})", {}), HasSubstr("2 trainers"));
}

}  // namespace
}  // namespace sherd::examples

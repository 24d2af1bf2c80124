#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/config/config_for_test.h"
#include "client/config/deepspeed_config.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(ConfiguredSchedules, RiseAndFall) {
  const auto file = DeepSpeedConfig::Load(TestData("stage1_scheduler"));
  const auto asked = file->Resolve(Program());
  ASSERT_TRUE(asked.ok()) << asked.status();
  ASSERT_TRUE(asked->schedule.has_value());
  EXPECT_EQ(asked->schedule->name, "WarmupDecayLR");
  EXPECT_EQ(asked->schedule->warmup_type, "log");
  const std::map<std::string, double> filled = {
      {"warmup_min_lr", 0}, {"warmup_max_lr", 2e-3}, {"warmup_num_steps", 40}, {"total_num_steps", 400}};
  EXPECT_EQ(asked->schedule->numbers, filled);
  ProgramValues no_steps = Program();
  no_steps.total_steps = {};
  EXPECT_NE(std::string(file->Resolve(no_steps).status().message()).find("total_num_steps"),
            std::string::npos);

  const TrainingConfig cosine = Resolved(
      R"({"scheduler": {"type": "warmupcosinelr", "params": {"total_num_steps": 100, "cos_min_ratio": 0.1,
          "warmup_type": "linear"}}})");
  EXPECT_EQ(cosine.schedule->name, "WarmupCosineLR");
  EXPECT_EQ(cosine.schedule->numbers.at("cos_min_ratio"), 0.1);
  EXPECT_EQ(cosine.schedule->numbers.count("warmup_num_steps"), 0u);  // the schedule's own default: 1000
  EXPECT_EQ(cosine.schedule->warmup_type, "linear");
  EXPECT_FALSE(Resolved("{}").schedule.has_value());
  EXPECT_NE(ErrorOf(R"({"scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 5}}})")
                .find("WarmupLR has no such parameter"),
            std::string::npos);
  EXPECT_NE(
      ErrorOf(R"({"scheduler": {"type": "WarmupDecayLR", "params": {}}})").find("needs total_num_steps"),
      std::string::npos);
  EXPECT_NE(
      ErrorOf(R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1, "warmup_max_lr": 0.1}}})")
          .find("raise it"),
      std::string::npos);
}

// Keys and values of DeepSpeed's own tutorials, but for the number of steps.
TEST(ConfiguredSchedules, CyclesAndRangeTests) {
  const auto load = [](const std::string& name) {
    const auto file = DeepSpeedConfig::Load(TestData(name));
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(file->warnings().empty()) << absl::StrJoin(file->warnings(), "\n");
    return file->Resolve(Program()).value_or(TrainingConfig());
  };
  const TrainingConfig cycle = load("one_cycle");
  ASSERT_TRUE(cycle.schedule.has_value());
  EXPECT_EQ(cycle.schedule->name, "OneCycle");
  const std::map<std::string, double> numbers = {
      {"cycle_first_step_size", 6},    {"cycle_first_stair_count", 3}, {"cycle_second_step_size", 4},
      {"cycle_second_stair_count", 2}, {"decay_step_size", 2},         {"cycle_min_lr", 0.0001},
      {"cycle_max_lr", 0.001},         {"decay_lr_rate", 0.5},         {"cycle_min_mom", 0.85},
      {"cycle_max_mom", 0.99},         {"decay_mom_rate", 0}};
  EXPECT_EQ(cycle.schedule->numbers, numbers);
  const TrainingConfig range = load("lr_range_test");
  ASSERT_TRUE(range.schedule.has_value());
  EXPECT_EQ(range.schedule->name, "LRRangeTest");
  EXPECT_EQ(range.schedule->numbers.at("lr_range_test_staircase"), 0);
  EXPECT_EQ(range.schedule->numbers.at("lr_range_test_step_rate"), 5);

  const auto section = [](const std::string& params, const char* optimizer = "AdamW") {
    return absl::StrCat(R"({"optimizer": {"type": ")", optimizer,
                        R"("}, "scheduler": {"type": "OneCycle", "params": {)", params, "}}}");
  };
  // What is "auto" and nobody fills has DeepSpeed's default.
  const TrainingConfig automatic = Resolved(section(
      R"("cycle_min_lr": 1e-4, "cycle_max_lr": "auto", "cycle_momentum": "auto",
         "cycle_second_step_size": "auto",
         "cycle_first_step_size": "auto")"));
  EXPECT_EQ(automatic.schedule->numbers.at("cycle_max_lr"),
            1e-3);  // the optimizer's, here DeepSpeed's default
  EXPECT_EQ(automatic.schedule->numbers.at("cycle_momentum"), 1);
  EXPECT_EQ(automatic.schedule->numbers.at("cycle_first_step_size"), 2000);
  EXPECT_EQ(automatic.schedule->numbers.count("cycle_second_step_size"), 0u);
  for (const auto& [params, named] : std::map<std::string, std::string>{
           {R"("cycle_max_lr": 0.1)", "needs cycle_min_lr"},
           {R"("cycle_min_lr": "auto", "cycle_max_lr": 0.1)", "needs cycle_min_lr"},
           {R"("cycle_min_lr": 0.2, "cycle_max_lr": 0.1)", "cycle_max_lr is 0.1, below cycle_min_lr 0.2"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_min_mom": 0.8, "cycle_max_mom": 0.7)",
            "cycle_max_mom is 0.7, below cycle_min_mom 0.8"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_max_mom": 1)", "below 1"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 0)", "of at least 1"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_momentum": 1)", "true or false"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 10, "decay_step_size": 1,
              "decay_mom_rate": 0.01)",
            "within 400 steps"},
           {R"("cycle_min_lr": 0, "cycle_max_lr": 1, "warmup_num_steps": 5)",
            "OneCycle has no such parameter"}}) {
    EXPECT_NE(ErrorOf(section(params)).find(named), std::string::npos) << ErrorOf(section(params));
  }
  const std::string fine = R"("cycle_min_lr": 0, "cycle_max_lr": 1)";
  EXPECT_EQ(WarningsOf(section(fine)), "");
  EXPECT_EQ(WarningsOf(section(fine, "SGD")),
            "ds.json: scheduler.type: OneCycle leaves momentum alone: sgd has no betas; write "
            "\"cycle_momentum\": false");
  EXPECT_EQ(WarningsOf(section(fine + R"(, "cycle_momentum": false)", "SGD")), "");
}

}  // namespace
}  // namespace sherd

// What tests of the configuration share: a program that asks, and what it gets.
#ifndef SHERD_CLIENT_CONFIG_CONFIG_FOR_TEST_H_
#define SHERD_CLIENT_CONFIG_CONFIG_FOR_TEST_H_

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/config/deepspeed_config.h"
#include "gtest/gtest.h"

namespace sherd {

inline std::string TestData(const std::string& name) {
  return absl::StrCat("client/config/testdata/", name, ".json");
}

// What train_gpt has: defaults, and what follows from its model.
inline ProgramValues Program(int world_size = 2) {
  ProgramValues mine;
  mine.world_size = world_size;
  mine.hidden_size = 128;
  mine.stage.value = 2;
  mine.train_batch.value = 8;
  mine.accumulation.value = 1;
  mine.total_steps.value = 400;
  mine.warmup_steps.value = 40;
  mine.lr.value = 2e-3;
  mine.weight_decay.value = 0.1;
  mine.max_grad_norm.value = 0.75;
  mine.betas.value = {0.9, 0.95};
  mine.eps.value = 1e-8;
  mine.compute.value = DType::kFloat32;
  return mine;
}

inline TrainingConfig Resolved(const std::string& text, const ProgramValues& program = Program()) {
  const auto file = DeepSpeedConfig::Parse(text, "ds.json");
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return {};
  const auto out = file->Resolve(program);
  EXPECT_TRUE(out.ok()) << out.status();
  return out.value_or(TrainingConfig());
}

inline std::string ErrorOf(const std::string& text, const ProgramValues& program = Program()) {
  const auto file = DeepSpeedConfig::Parse(text, "ds.json");
  const absl::Status status = file.ok() ? file->Resolve(program).status() : file.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_TRUE(absl::StartsWith(status.message(), "ds.json: ")) << status;
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
  return std::string(status.message());
}

inline std::string WarningsOf(const std::string& text) {
  const auto file = DeepSpeedConfig::Parse(text, "ds.json");
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? absl::StrJoin(file->warnings(), "\n") : "";
}

}  // namespace sherd

#endif  // SHERD_CLIENT_CONFIG_CONFIG_FOR_TEST_H_

#include "client/cli/plan.h"

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cli/fake_job.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/formats/safetensors_file.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string TextOf(const PlanOptions& options, bool json = false) {
  std::ostringstream out;
  const absl::Status status = PlanWithoutJob(options, json, out);
  EXPECT_TRUE(status.ok()) << status;
  return out.str();
}

std::string ErrorOf(const PlanOptions& options) {
  std::ostringstream out;
  const absl::Status status = PlanWithoutJob(options, false, out);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(out.str(), "");
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
  return std::string(status.message());
}

PlanOptions Params(const std::string& params, int world) {
  PlanOptions options;
  options.params = params;
  options.world = world;
  return options;
}

std::string Write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
  return path;
}

TEST(Plan, TheTextbooksNumbers) {
  const std::string text = TextOf(Params("7.5B", 64));
  EXPECT_THAT(text, HasSubstr("7500000000 elements"));
  EXPECT_THAT(text, HasSubstr("\n0      120 GB "));
  EXPECT_THAT(text, HasSubstr("\n1      31.4 GB "));
  EXPECT_THAT(text, HasSubstr("\n2      16.6 GB "));
  EXPECT_THAT(text, HasSubstr("\n3      1.9 GB "));
  PlanOptions one = Params("7.5B", 64);
  one.stage = 2;
  one.dtype = "bf16";
  const auto json = nlohmann::json::parse(TextOf(one, /*json=*/true));
  ASSERT_EQ(json["plans"].size(), 1u);
  EXPECT_EQ(json["plans"][0]["textbook"]["rank_bytes"], 16640625000.0);
  EXPECT_EQ(json["hosts"], 8);
  int64_t sum = 0;
  for (const auto& [name, bytes] : json["plans"][0]["sherd"]["segments"].items()) sum += bytes.get<int64_t>();
  EXPECT_EQ(json["plans"][0]["sherd"]["host_bytes"], sum);
}

TEST(Plan, AModelsFileByItsHeader) {
  runtime::TestRoot root;
  const std::string path = root.path() + "/model.safetensors";
  auto plan = formats::LayOut({{"wte.weight", formats::StoredType::kF32, {100, 64}},
                               {"h.0.a", formats::StoredType::kBF16, {300}},
                               {"h.0.b", formats::StoredType::kF32, {5}},
                               {"counts", formats::StoredType::kI64, {7}},
                               {"exp_avg/wte.weight", formats::StoredType::kF32, {100, 64}}},
                              {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const uint64_t bytes = plan->header.tensors.back().end;
  auto writer = formats::SafetensorsWriter::Create(path, *plan, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->WriteData(0, std::string(bytes, '\0')).ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  PlanOptions options;
  options.model = path;
  options.world = 2;
  const auto task = TaskFromFlags(options);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->request.job.layout.total_elements(), 6400 + 300 + 5);
  EXPECT_EQ(task->request.job.buffers.size(), 1u);
  EXPECT_EQ(task->request.largest_layer_elements, 6400);
  EXPECT_EQ(task->request.ranks_per_host, 2);
  options.model = root.path() + "/none.safetensors";
  EXPECT_THAT(ErrorOf(options), HasSubstr("none.safetensors"));
}

TEST(Plan, AConfigurationSaysWhatToPlan) {
  runtime::TestRoot root;
  PlanOptions options = Params("1B", 4);
  options.config = Write(root.path() + "/ds.json", R"({"zero_optimization": {"stage": 3, "offload_optimizer":
      {"device": "cpu"}}, "bf16": {"enabled": true}, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}})");
  const auto task = TaskFromFlags(options);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->stages, std::vector<int>{3});
  EXPECT_EQ(task->dtypes, std::vector<DType>{DType::kBFloat16});
  EXPECT_EQ(task->request.job.optimizer, OptimizerKind::kSgd);
  EXPECT_TRUE(task->request.offload_optimizer);
  EXPECT_THAT(TextOf(options), HasSubstr("DeepSpeed's estimators"));
  options.stage = 2;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--stage says 2"));
  options.stage = -1;
  options.dtype = "fp32";
  EXPECT_THAT(ErrorOf(options), HasSubstr("--dtype says fp32"));
  options.dtype = "";
  options.optimizer = "adamw";
  EXPECT_THAT(ErrorOf(options), HasSubstr("--optimizer says adamw"));
}

TEST(Plan, WhatHostsKeepCostsMemoryAndSavesTraffic) {
  runtime::TestRoot root;
  PlanOptions options = Params("4B", 16);
  const auto config = [&](int partition, const char* more) {
    return Write(root.path() + "/ds.json",
                 absl::StrCat(R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3,
                     "zero_hpz_partition_size": )",
                              partition, more, "}}"));
  };
  options.config = config(1, "");
  EXPECT_THAT(TextOf(options), Not(HasSubstr("zero_hpz_partition_size")));
  options.config = config(8, "");
  // 2G of the others' elements in 16 bits instead of the default limit of 1G; 3 times 4 GB fewer by one.
  EXPECT_THAT(TextOf(options), HasSubstr("gathered 4 GB"));
  EXPECT_THAT(TextOf(options), HasSubstr("2 GB more than stage3_max_live_parameters leaves it"));
  EXPECT_THAT(TextOf(options), HasSubstr("sends 8 GB a step instead of 12 GB"));
  const auto json = nlohmann::json::parse(TextOf(options, /*json=*/true));
  EXPECT_EQ(json["plans"][0]["sherd"]["network_traffic_bytes"], 8e9);
  options.config = config(4, "");
  EXPECT_THAT(ErrorOf(options),
              HasSubstr("zero_hpz_partition_size is 4, but a host has 8 trainers: write 8"));
  options.local_world = 4;
  EXPECT_THAT(TextOf(options), HasSubstr("zero_hpz_partition_size"));
  options.local_world = 16;  // one host: no number has an effect
  EXPECT_THAT(TextOf(options), Not(HasSubstr("zero_hpz_partition_size")));
}

TEST(Plan, WrongOptionsAreOneLine) {
  for (const char* params : {"", "x", "-1", "0", "7.5Q", "1e99", "nan", "0.5", "7.5B7", "99999T"}) {
    PlanOptions options = Params(params, 4);
    EXPECT_THAT(ErrorOf(options), HasSubstr("--params")) << params;
  }
  PlanOptions options = Params("1B", 4);
  options.local_world = 5;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--local-world 5"));
  options.local_world = 0;
  options.model = "x";
  EXPECT_THAT(ErrorOf(options), HasSubstr("give one"));
  options.model = "";
  options.optimizer = "adamx";
  EXPECT_THAT(ErrorOf(options), HasSubstr("adamx"));
  options.optimizer = "";
  options.largest_layer = "big";
  EXPECT_THAT(ErrorOf(options), HasSubstr("--largest-layer"));
  options.largest_layer = "";
  options.config = "no/such.json";
  EXPECT_THAT(ErrorOf(options), HasSubstr("no/such.json"));
}

}  // namespace
}  // namespace sherd::cli

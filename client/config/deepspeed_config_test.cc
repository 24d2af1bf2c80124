#include "client/config/deepspeed_config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/config/config_for_test.h"
#include "client/config/key_table.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(DeepSpeedConfig, ShippedFilesAreAcceptedAsTheyAre) {
  for (const char* name : {"stage0", "stage1_scheduler", "stage2", "stage2_offload", "stage3",
                           "stage3_offload", "stage3_offload_scheduler"}) {
    SCOPED_TRACE(name);
    const auto file = DeepSpeedConfig::Load(TestData(name));
    ASSERT_TRUE(file.ok()) << file.status();
    for (int world : {1, 2, 4}) {
      EXPECT_TRUE(file->CheckWorld(world).ok());
      const auto asked = file->Resolve(Program(world));
      ASSERT_TRUE(asked.ok()) << asked.status();
      EXPECT_EQ(asked->stage, name[5] - '0');
      EXPECT_EQ(asked->train_batch, 8);
      EXPECT_EQ(asked->accumulation, 1);
      EXPECT_EQ(asked->micro_batch, 8 / world);
      EXPECT_EQ(asked->max_grad_norm, 0.75);
      EXPECT_EQ(asked->optimizer.scalars()[kLr], 2e-3);
      EXPECT_EQ(asked->optimizer.scalars()[kWeightDecay], 0.1);
      EXPECT_EQ(asked->offload_optimizer, absl::StrContains(name, "offload"));
      EXPECT_EQ(asked->offload_param, absl::StrContains(name, "stage3_offload"));
      const bool fp16 = absl::StrContains(name, "stage1");
      EXPECT_EQ(asked->compute, fp16 ? DType::kFloat16 : DType::kFloat32);
      EXPECT_EQ(asked->loss_scale.initial, fp16 ? 65536 : 1);
      EXPECT_EQ(asked->Zero().stage(), asked->stage);
    }
    // One line a reason, each naming the file.
    for (const std::string& line : file->warnings()) {
      EXPECT_TRUE(absl::StartsWith(line, TestData(name))) << line;
      EXPECT_FALSE(absl::StrContains(line, "offload_optimizer.device")) << line;
    }
    EXPECT_LE(file->warnings().size(), 8u);
  }
}

TEST(DeepSpeedConfig, Optimizers) {
  const auto kind = [](const std::string& section) {
    return Resolved(absl::StrCat("{\"optimizer\": ", section, "}")).optimizer.kind();
  };
  EXPECT_EQ(kind(R"({"type": "Adam"})"), OptimizerKind::kAdamW);
  EXPECT_EQ(kind(R"({"type": "Adam", "params": {"adam_w_mode": true}})"), OptimizerKind::kAdamW);
  EXPECT_EQ(kind(R"({"type": "Adam", "params": {"adam_w_mode": false}})"), OptimizerKind::kAdam);
  EXPECT_EQ(kind(R"({"type": "AdamW", "params": {"adam_w_mode": false}})"), OptimizerKind::kAdamW);
  EXPECT_EQ(kind(R"({"type": "adamw"})"), OptimizerKind::kAdamW);
  EXPECT_EQ(kind(R"({"type": "SGD"})"), OptimizerKind::kSgd);
  EXPECT_EQ(kind(R"({"type": "Adagrad"})"), OptimizerKind::kAdagrad);
  EXPECT_EQ(kind(R"({"type": "Lion"})"), OptimizerKind::kLion);
  const GroupScalars adagrad =
      Resolved(R"({"optimizer": {"type": "Adagrad", "params": {"lr_decay": 0.5}}})").optimizer.scalars();
  EXPECT_EQ(adagrad[kLr], 1e-2);
  EXPECT_EQ(adagrad[kEps], 1e-10);
  EXPECT_EQ(adagrad[kLrDecay], 0.5);
  const GroupScalars s =
      Resolved(R"({"optimizer": {"type": "Adam", "params": {"lr": 3e-5, "betas": [0.8, 0.99],
      "eps": 1e-6, "weight_decay": 3e-7}}})")
          .optimizer.scalars();
  EXPECT_EQ(s[kLr], 3e-5);
  EXPECT_EQ(s[kBeta1], 0.8);
  EXPECT_EQ(s[kBeta2], 0.99);
  EXPECT_EQ(s[kEps], 1e-6);
  EXPECT_EQ(s[kWeightDecay], 3e-7);
  const GroupScalars defaults = Resolved(R"({"optimizer": {"type": "AdamW"}})").optimizer.scalars();
  EXPECT_EQ(defaults[kLr], 1e-3);  // DeepSpeed's, not the program's: the file has an optimizer of its own
  EXPECT_EQ(defaults[kBeta2], 0.999);
  EXPECT_EQ(defaults[kWeightDecay], 0);
  const TrainingConfig none = Resolved("{}");
  EXPECT_FALSE(none.has_optimizer);
  EXPECT_EQ(none.optimizer.scalars()[kBeta2], 0.95);
  const GroupScalars lamb = Resolved(R"({"optimizer": {"type": "Lamb", "params": {"max_coeff": 0.3,
      "min_coeff": 0.1}}})")
                                .optimizer.scalars();
  EXPECT_EQ(lamb[kMaxCoeff], 0.3);
  EXPECT_EQ(lamb[kMinCoeff], 0.1);
  TrainingConfig muon = Resolved(R"({"optimizer": {"type": "Muon"}})");
  ASSERT_TRUE(muon.others.has_value());
  EXPECT_EQ(muon.optimizer.scalars()[kLr], 0.02);
  EXPECT_EQ(muon.optimizer.scalars()[kMomentum], 0.95);
  EXPECT_EQ(muon.optimizer.scalars()[kNsSteps], 5);
  EXPECT_EQ(muon.others->kind(), OptimizerKind::kMuon);
  EXPECT_EQ(muon.others->scalars()[kLr], 3e-4);
  EXPECT_EQ(muon.others->scalars()[kBeta2], 0.95);
  EXPECT_EQ(muon.others->scalars()[kEps], 1e-10);
  EXPECT_EQ(muon.others->scalars()[kNsSteps], 0);
  muon = Resolved(
      R"({"optimizer": {"type": "Muon", "params": {"lr": 0.1, "adam_lr": 0.2, "ns_method": "standard"}}})");
  EXPECT_EQ(muon.optimizer.scalars()[kLr], 0.1);
  EXPECT_EQ(muon.others->scalars()[kLr], 0.2);
  muon = Resolved(R"({"optimizer": {"type": "Muon", "params": {"lr": 0.1, "muon_lr": 0.3}}})");
  EXPECT_EQ(muon.optimizer.scalars()[kLr], 0.3);
  EXPECT_EQ(muon.others->scalars()[kLr], 0.1);
  EXPECT_FALSE(Resolved(R"({"optimizer": {"type": "Lion"}})").others.has_value());
  const GroupScalars sgd = Resolved(R"({"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9,
      "nesterov": true}}})")
                               .optimizer.scalars();
  EXPECT_EQ(sgd[kMomentum], 0.9);
  EXPECT_EQ(sgd[kNesterov], 1);

  EXPECT_NE(ErrorOf(R"({"optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}})")
                .find("AdamW has no such parameter"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"optimizer": {"type": "OneBitAdam"}})")
                .find("use one of Adam, AdamW, SGD, Adagrad, Lion, Lamb, Muon"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"optimizer": {"params": {"lr": 1}}})").find("optimizer.type"), std::string::npos);
  EXPECT_NE(ErrorOf(R"({"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}})").find("two numbers"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"optimizer": {"type": "AdamW", "params": {"amsgrad": true}}})").find("AMSGrad"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1}}})")
                .find("gradient_clipping"),
            std::string::npos);
}

TEST(DeepSpeedConfig, FlagsMustNotContradict) {
  ProgramValues flags = Program();
  flags.max_grad_norm.flag = "--clip";
  EXPECT_EQ(ErrorOf(R"({"gradient_clipping": 0.5})", flags),
            "ds.json: gradient_clipping is 0.5, but --clip says 0.75: remove the flag, or write \"auto\" in "
            "the file");
  EXPECT_EQ(Resolved(R"({"gradient_clipping": 0.75})", flags).max_grad_norm, 0.75);
  EXPECT_EQ(Resolved(R"({"gradient_clipping": "auto"})", flags).max_grad_norm, 0.75);
  EXPECT_EQ(Resolved("{}", flags).max_grad_norm, 0.75);
  EXPECT_EQ(Resolved("{}").max_grad_norm, 1.0);  // DeepSpeed's default
  EXPECT_EQ(Resolved("{}").stage, 0);
  flags.stage.flag = "--stage";
  EXPECT_EQ(Resolved("{}", flags).stage, 2);
  EXPECT_NE(ErrorOf(R"({"zero_optimization": {"stage": 1}})", flags).find("--stage says 2"),
            std::string::npos);
  flags.compute.flag = "--precision";
  EXPECT_NE(ErrorOf(R"({"bf16": {"enabled": true}})", flags).find("--precision says fp32"),
            std::string::npos);
  flags.compute.value = DType::kBFloat16;
  EXPECT_EQ(Resolved(R"({"bf16": {"enabled": "auto"}})", flags).compute, DType::kBFloat16);
  EXPECT_EQ(Resolved("{}", flags).compute, DType::kBFloat16);
  EXPECT_NE(ErrorOf(R"({"bf16": {"enabled": false}})", flags).find("--precision says bf16"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"fp16": {"enabled": true}})", flags).find("--precision says bf16"),
            std::string::npos);
  flags.compute.flag = "";
  EXPECT_EQ(Resolved("{}", flags).compute, DType::kFloat32);
  EXPECT_EQ(Resolved(R"({"bf16": {"enabled": "auto"}})", flags).compute, DType::kBFloat16);
  EXPECT_EQ(Resolved(R"({"bf16": {"enabled": false}})", flags).compute, DType::kFloat32);
}

TEST(DeepSpeedConfig, Batches) {
  TrainingConfig c = Resolved(R"({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2})");
  EXPECT_EQ(c.train_batch, 12);
  EXPECT_EQ(c.accumulation, 2);
  c = Resolved(R"({"train_batch_size": 6})");
  EXPECT_EQ(c.micro_batch, 3);
  c = Resolved(R"({"gradient_accumulation_steps": 4})");  // the rest is the program's
  EXPECT_EQ(c.train_batch, 8);
  EXPECT_EQ(c.micro_batch, 1);
  c = Resolved("{}", Program(3));  // the program's batch of 8 may be split unevenly
  EXPECT_EQ(c.train_batch, 8);
  EXPECT_EQ(c.micro_batch, 3);
  EXPECT_NE(ErrorOf(R"({"train_batch_size": 7})").find("7, train_micro_batch_size_per_gpu (not given)"),
            std::string::npos);
  ProgramValues flags = Program();
  flags.train_batch.flag = "--global-batch";
  EXPECT_NE(ErrorOf(R"({"train_batch_size": 6})", flags).find("--global-batch says 8"), std::string::npos);
  EXPECT_NE(ErrorOf(R"({"train_micro_batch_size_per_gpu": 3})", flags).find("train_batch_size 8"),
            std::string::npos);
  EXPECT_EQ(Resolved(R"({"train_micro_batch_size_per_gpu": 2})", flags).accumulation, 2);

  const auto file = DeepSpeedConfig::Parse(
      R"({"train_batch_size": 30, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2})",
      "ds.json");
  EXPECT_NE(std::string(file->CheckWorld(4).message()).find("4 x 2 x 4 is 32, not 30"), std::string::npos);
  EXPECT_TRUE(DeepSpeedConfig::Parse(R"({"gradient_accumulation_steps": 2})", "d")->CheckWorld(3).ok());
}

TEST(DeepSpeedConfig, Elasticity) {
  const std::string elastic = R"({"elasticity": {"enabled": true, "max_train_batch_size": 2000,
      "micro_batch_sizes": [2, 4, 6], "version": 0.1})";
  const TrainingConfig c = Resolved(elastic + "}", Program(8));
  EXPECT_EQ(c.train_batch, 1680);
  EXPECT_EQ(c.micro_batch, 6);
  EXPECT_EQ(c.accumulation, 35);
  EXPECT_NE(WarningsOf(elastic + "}").find("stays as it is while a job runs"), std::string::npos);
  EXPECT_NE(ErrorOf(elastic + R"(, "train_batch_size": 8})").find("elasticity that chooses"),
            std::string::npos);
  EXPECT_EQ(DeepSpeedConfig::Parse(elastic + "}", "ds.json")->CheckWorld(11).code(),
            absl::StatusCode::kInvalidArgument);
  ProgramValues flags = Program(8);
  flags.train_batch.flag = "--global-batch";
  EXPECT_NE(ErrorOf(elastic + "}", flags)
                .find("elasticity chooses train_batch_size 1680, but --global-batch says 8"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"elasticity": {"enabled": true, "micro_batch_sizes": [1.5]}})").find("whole numbers"),
            std::string::npos);
}

TEST(DeepSpeedConfig, Precision) {
  EXPECT_EQ(Resolved(R"({"bf16": {"enabled": true}})").compute, DType::kBFloat16);
  EXPECT_EQ(Resolved(R"({"bfloat16": {"enabled": true}})").compute, DType::kBFloat16);
  const TrainingConfig fp16 =
      Resolved(R"({"fp16": {"enabled": true, "initial_scale_power": 12, "loss_scale_window": 50,
      "hysteresis": 1, "min_loss_scale": 0.5}, "communication_data_type": "fp32"})");
  EXPECT_EQ(fp16.compute, DType::kFloat16);
  EXPECT_TRUE(fp16.loss_scale.dynamic);
  EXPECT_EQ(fp16.loss_scale.initial, 4096);
  EXPECT_EQ(fp16.loss_scale.window, 50u);
  EXPECT_EQ(fp16.loss_scale.hysteresis, 1u);
  EXPECT_EQ(fp16.loss_scale.min, 0.5);
  EXPECT_EQ(fp16.communication, DType::kFloat32);
  const TrainingConfig fixed = Resolved(R"({"fp16": {"enabled": true, "loss_scale": 128}})");
  EXPECT_FALSE(fixed.loss_scale.dynamic);
  EXPECT_EQ(fixed.loss_scale.initial, 128);
  EXPECT_FALSE(Resolved(R"({"bf16": {"enabled": true}})").communication.has_value());
  EXPECT_EQ(fp16.Zero().compute(), DType::kFloat16);
  EXPECT_EQ(fp16.Zero().communication(), DType::kFloat32);
  EXPECT_EQ(fp16.Zero().loss_scale()->initial, 4096);
  ProgramValues flags = Program();
  flags.loss_scale = {64, "--loss-scale"};
  EXPECT_EQ(Resolved(R"({"fp16": {"enabled": true}})", flags).loss_scale.initial, 64);
  EXPECT_NE(ErrorOf(R"({"fp16": {"enabled": true, "loss_scale": 128}})", flags).find("--loss-scale says 64"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"fp16": {"enabled": true}, "bf16": {"enabled": true}})").find("keep one"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"({"fp16": {"enabled": true, "initial_scale_power": 0, "min_loss_scale": 2}})")
                .find("lower it"),
            std::string::npos);
}

TEST(DeepSpeedConfig, Buckets) {
  const auto elements = [](const std::string& value) {
    return Resolved(absl::StrCat(R"({"zero_optimization": {"reduce_bucket_size": )", value, "}}"))
        .bucket_elements;
  };
  EXPECT_EQ(elements("\"auto\""), 128 * 128);
  EXPECT_EQ(elements("5e8"), 4194304);
  EXPECT_EQ(elements("1000"), 1000);
  EXPECT_EQ(elements("0"), 1);
  EXPECT_EQ(Resolved("{}").bucket_elements, 4194304);
}

TEST(DeepSpeedConfig, LimitsOfStage3) {
  const auto of = [](const std::string& keys) {
    return Resolved(absl::StrCat("{\"zero_optimization\": {\"stage\": 3", keys, "}}"));
  };
  const TrainingConfig usual = of("");
  EXPECT_EQ(usual.stage, 3);
  EXPECT_EQ(usual.stage3.prefetch.prefetch_bucket, 50000000);
  EXPECT_EQ(usual.stage3.prefetch.max_live, 1000000000);
  EXPECT_EQ(usual.stage3.prefetch.max_reuse_distance, 1000000000);
  EXPECT_EQ(usual.stage3.persistence.tensor, 100000);
  EXPECT_EQ(usual.stage3.persistence.model, std::numeric_limits<int64_t>::max());
  const TrainingConfig given = of(R"(, "stage3_prefetch_bucket_size": 1, "stage3_max_live_parameters": 2,
      "stage3_max_reuse_distance": 3, "stage3_param_persistence_threshold": 4,
      "stage3_model_persistence_threshold": 5)");
  EXPECT_EQ(given.Zero().stage3().prefetch.prefetch_bucket, 1);
  EXPECT_EQ(given.Zero().stage3().prefetch.max_live, 2);
  EXPECT_EQ(given.Zero().stage3().prefetch.max_reuse_distance, 3);
  EXPECT_EQ(given.Zero().stage3().persistence.tensor, 4);
  EXPECT_EQ(given.Zero().stage3().persistence.model, 5);
  EXPECT_EQ(of(R"(, "max_live_parameters": 7)").stage3.prefetch.max_live, 7);
  EXPECT_EQ(usual.Zero().stage3().hpz_partition, 1);
  EXPECT_EQ(of(R"(, "zero_hpz_partition_size": 8)").Zero().stage3().hpz_partition, 8);
}

TEST(DeepSpeedConfig, WarningsSayWhatHappensInstead) {
  EXPECT_EQ(WarningsOf("{}"), "");
  EXPECT_EQ(
      WarningsOf(R"({"wall_clock_breakdown": false, "zero_optimization": {"stage": 2, "reduce_scatter": true,
      "offload_optimizer": {"device": "cpu"}}})"),
      "");
  EXPECT_EQ(WarningsOf(R"({"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 5,
      "zero_hpz_partition_size": 8}})"),
            "");
  EXPECT_EQ(WarningsOf(R"({"zero_optimization": {"stage": 3, "mics_shard_size": 8}})"), "");
  EXPECT_EQ(Resolved(R"({"zero_optimization": {"mics_shard_size": 8}})").Zero().shard_ranks(), 8);
  EXPECT_EQ(Resolved("{}").Zero().shard_ranks(), 0);
  const std::string nvme =
      WarningsOf(R"({"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/n"}}})");
  EXPECT_NE(nvme.find("zero_optimization.offload_optimizer.device"), std::string::npos);
  EXPECT_NE(nvme.find("no NVMe offload"), std::string::npos);
  EXPECT_NE(
      WarningsOf(R"({"zero_optimization": {"zero_quantized_gradients": true}})").find("never quantised"),
      std::string::npos);
  // One line for all keys with one reason.
  EXPECT_EQ(
      WarningsOf(R"({"zero_optimization": {"allgather_bucket_size": 5, "allgather_partitions": false}})")
          .find('\n'),
      std::string::npos);
}

TEST(DeepSpeedConfig, BadFiles) {
  EXPECT_NE(
      ErrorOf(R"({"zero_optimization": {"stagee": 2}})").find("did you mean \"zero_optimization.stage\"?"),
      std::string::npos);
  EXPECT_NE(ErrorOf(R"({"train_batch_size": "8"})").find("without quotes"), std::string::npos);
  EXPECT_NE(ErrorOf(R"({"train_batch_size": 0})").find("of at least 1"), std::string::npos);
  EXPECT_NE(ErrorOf(R"({"zero_optimization.stage": 2})").find("not a known key"), std::string::npos);
  EXPECT_NE(ErrorOf(R"({"tensor_parallel": {"autotp_size": 2}})").find("remove the object"),
            std::string::npos);
  EXPECT_EQ(WarningsOf(R"({"elasticity": {"enabled": false, "max_train_batch_size": 100}})"), "");
  EXPECT_EQ(WarningsOf(R"({"amp": {"enabled": false, "opt_level": "O1"}})"), "");
  EXPECT_NE(ErrorOf(R"({"amp": {"enabled": true}})").find("Apex"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"fp16\": NaN}").find("NaN"), std::string::npos);
  EXPECT_EQ(DeepSpeedConfig::Load("no/such/file.json").status().code(), absl::StatusCode::kNotFound);
}

// A pipe without a writer would be waited for.
TEST(DeepSpeedConfig, WhatIsNoFileIsRefusedAtOnce) {
  const std::string pipe = testing::TempDir() + "/ds.pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::map<std::string, std::string> others = {
      {".", "directory"}, {pipe, "pipe"}, {"/dev/null", "device"}};
  for (const auto& [path, kind] : others) {
    const absl::Status status = DeepSpeedConfig::Load(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat(path, ": not a regular file but a ", kind)))
        << status;
  }
  ::unlink(pipe.c_str());
}

// Every key with values of every kind: an answer or one line, and what was accepted also resolves to one.
TEST(DeepSpeedConfig, AnyValueOfAnyKey) {
  int accepted = 0, refused = 0;
  for (const config::KeySpec* key : config::AllKeys()) {
    for (const char* value : {"null", "\"auto\"",   "true",    "false",     "0",
                              "1",    "2",          "-1",      "0.5",       "1e308",
                              "5e8",  "\"x\"",      "\"cpu\"", "\"AdamW\"", "\"WarmupDecayLR\"",
                              "[]",   "[0.5, 0.5]", "[1]",     "{}",        "{\"enabled\": true}"}) {
      std::string text = value;
      const std::vector<std::string> path = absl::StrSplit(key->path, '.');
      for (size_t i = path.size(); i-- > 0;) {
        const bool typed = i == 1 && (path[0] == "optimizer" || path[0] == "scheduler");
        text = absl::StrCat("{", typed ? "\"type\": \"AdamW\", " : "", "\"", path[i], "\": ", text, "}");
      }
      if (path[0] == "scheduler") {
        const bool cycle = absl::StartsWith(path.back(), "cycle_") || absl::StartsWith(path.back(), "decay_");
        const bool range = absl::StartsWith(path.back(), "lr_range");
        text = absl::StrReplaceAll(text, {{"AdamW", cycle   ? "OneCycle"
                                                    : range ? "LRRangeTest"
                                                            : "WarmupCosineLR"}});
      }
      const auto file = DeepSpeedConfig::Parse(text, "ds.json");
      const absl::Status status = file.ok() ? file->Resolve(Program()).status() : file.status();
      (status.ok() ? accepted : refused)++;
      EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << text;
      EXPECT_TRUE(status.ok() || absl::StartsWith(status.message(), "ds.json: ")) << text << ": " << status;
      if (file.ok()) file->Resolve(ProgramValues()).status().IgnoreError();
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

// A shipped file with any one key misspelt or any one number made text: an error that names the key.
TEST(DeepSpeedConfig, EveryKeyOfAFileIsLookedAt) {
  std::ifstream in(TestData("stage3_offload_scheduler"));
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  int keys = 0;
  for (size_t at = text.find("\":"); at != text.npos; at = text.find("\":", at + 1), ++keys) {
    std::string misspelt = text;
    misspelt.insert(at, "_x");
    const size_t begin = text.rfind('"', at - 1) + 1;
    EXPECT_NE(ErrorOf(misspelt).find(text.substr(begin, at - begin) + "_x"), std::string::npos);
  }
  EXPECT_GT(keys, 40);
}

}  // namespace
}  // namespace sherd

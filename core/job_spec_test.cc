#include "core/job_spec.h"

#include <cmath>
#include <functional>
#include <limits>

#include "gtest/gtest.h"

namespace sherd {
namespace {

JobSpec Good() {
  JobSpec spec;
  spec.job = "gpt";
  spec.layout = *Layout::Create({{{"w", {3, 4}}, {"b", {4}, DType::kFloat32, 1}}});
  spec.groups = {"decay", ""};
  spec.world_size = 2;
  spec.parts = 4;
  spec.nominal_samples = 8;
  spec.buffers = {{"running_mean", {4}, "F32"}, {"batches", {}, "I64"}};
  return spec;
}

struct Case {
  const char* named;  // must be in the message
  std::function<void(JobSpec&)> change;
};

TEST(JobSpec, ValidateNamesTheBadField) {
  ASSERT_TRUE(Validate(Good()).ok()) << Validate(Good());
  const Case cases[] = {
      {"job=\"\"", [](JobSpec& s) { s.job = ""; }},
      {"job=\"a/b\"", [](JobSpec& s) { s.job = "a/b"; }},
      {"job=\"..\"", [](JobSpec& s) { s.job = ".."; }},
      {"job=", [](JobSpec& s) { s.job = std::string(65, 'a'); }},
      {"optimizer.kind=0", [](JobSpec& s) { s.optimizer = static_cast<OptimizerKind>(0); }},
      {"optimizer.kind=9", [](JobSpec& s) { s.optimizer = static_cast<OptimizerKind>(9); }},
      {"world_size=0", [](JobSpec& s) { s.world_size = 0; }},
      {"world_size=4097", [](JobSpec& s) { s.world_size = 4097; }},
      {"stage=4", [](JobSpec& s) { s.stage = 4; }},
      {"stage=-1", [](JobSpec& s) { s.stage = -1; }},
      {"shard_ranks (mics_shard_size)=3", [](JobSpec& s) { s.shard_ranks = 3; }},
      {"accumulation_parts=0", [](JobSpec& s) { s.parts = 0; }},
      {"accumulation_parts=4", [](JobSpec& s) { s.stage = 1; }},
      {"nominal_samples=0", [](JobSpec& s) { s.nominal_samples = 0; }},
      {"nominal_samples=nan", [](JobSpec& s) { s.nominal_samples = std::nan(""); }},
      {"nominal_samples=inf",
       [](JobSpec& s) { s.nominal_samples = std::numeric_limits<double>::infinity(); }},
      {"max_blob_bytes=1048577", [](JobSpec& s) { s.max_blob_bytes = 1048577; }},
      {"max_blob_bytes=-1", [](JobSpec& s) { s.max_blob_bytes = -1; }},
      {"optimizer.groups=0", [](JobSpec& s) { s.groups.clear(); }},
      {"group=1 but there are 1", [](JobSpec& s) { s.groups.pop_back(); }},
      {"group name", [](JobSpec& s) { s.groups[0] = "\xff"; }},
      {"buffer name", [](JobSpec& s) { s.buffers[0].name = ""; }},
      {"buffer w: the name is used twice", [](JobSpec& s) { s.buffers[0].name = "w"; }},
      {"buffer batches: the name is used twice", [](JobSpec& s) { s.buffers[0].name = "batches"; }},
      {"reduce_groups: 1,2 are 3 ranks, but the job has 2",
       [](JobSpec& s) {
         s.reduction.groups = {1, 2};
       }},
      {"gather.hpz_partition=-1", [](JobSpec& s) { s.gather.hpz_partition = -1; }},
      {"gather.hpz_partition=4097", [](JobSpec& s) { s.gather.hpz_partition = 4097; }},
      {"gather.hpz_partition=2 (zero_hpz_partition_size) is not the number of ranks of a host, which are 1,1",
       [](JobSpec& s) {
         s.reduction.groups = {1, 1};
         s.gather.hpz_partition = 2;
       }},
      {"compute_dtype=0", [](JobSpec& s) { s.compute = static_cast<DType>(0); }},
      {"staging_dtype=4", [](JobSpec& s) { s.staging = static_cast<DType>(4); }},
      {"loss_scale.initial=0", [](JobSpec& s) { s.loss_scale.initial = 0; }},
      {"stochastic_rounding=1", [](JobSpec& s) { s.stochastic_rounding = true; }},
      {"tensor w: dtype=bf16 but compute_dtype=fp16",
       [](JobSpec& s) {
         s.compute = DType::kFloat16;
         s.layout = *Layout::Create({{{"w", {3}, DType::kBFloat16}}});
       }},
      {"dtype \"F8\"", [](JobSpec& s) { s.buffers[0].dtype = "F8"; }},
      {"shape [-1]", [](JobSpec& s) { s.buffers[0].shape = {-1}; }},
      {"shape [1099511627776]", [](JobSpec& s) { s.buffers[0].shape = {int64_t{1} << 40}; }},
  };
  for (const Case& c : cases) {
    JobSpec spec = Good();
    c.change(spec);
    const absl::Status status = Validate(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_NE(status.message().find(c.named), std::string::npos) << c.named << " not in: " << status;
  }
}

TEST(JobSpec, HostsKeepWhatTheyGatherInPartitionsOfAnyHost) {
  for (const int partition : {0, 1, 2, 3}) {
    JobSpec spec = Good();
    spec.world_size = 5;
    spec.reduction.groups = {2, 3};
    spec.gather.hpz_partition = partition;
    EXPECT_TRUE(Validate(spec).ok()) << Validate(spec);
    EXPECT_EQ(spec.gather.keep(), partition > 1);
  }
  JobSpec one_host = Good();
  one_host.gather.hpz_partition = 8;
  EXPECT_TRUE(Validate(one_host).ok());
}

TEST(JobSpec, ShardHostsAreThoseOfEvenGroups) {
  const struct {
    std::vector<int32_t> ranks;
    int shard_ranks, want;
  } cases[] = {{{2, 2}, 0, 2},          {{2, 2}, 2, 1},       {{2, 2}, 4, 2},       {{2, 2}, 1, 0},
               {{2, 2}, 3, 0},          {{1, 3, 2, 2}, 4, 2}, {{1, 3, 4}, 4, 0},    {{1, 1, 1, 1}, 2, 2},
               {{1, 1, 1, 1}, 3, 0},    {{2, 1, 1, 2}, 3, 2}, {{2, 1, 2, 1}, 3, 2}, {{1, 1, 1}, 1, 1},
               {{1, 1, 1, 1, 2}, 2, 0}, {{4, 4}, 8, 2},       {{4, 4}, 9, 0}};
  for (const auto& c : cases) {
    JobSpec spec;
    spec.reduction.groups = c.ranks;
    spec.shard_ranks = c.shard_ranks;
    EXPECT_EQ(ShardHosts(spec, static_cast<int>(c.ranks.size())), c.want)
        << c.shard_ranks << " of " << Describe(spec.reduction);
  }
  JobSpec one;
  one.shard_ranks = 3;
  EXPECT_EQ(ShardHosts(one, 1), 1);
}

TEST(JobSpec, CheckSameNamesFieldAndBothValues) {
  JobSpec other = Good();
  other.uuid = "another";
  EXPECT_TRUE(CheckSame(Good(), other).ok());
  const Case cases[] = {
      {"world_size is 2 in job gpt but 3", [](JobSpec& s) { s.world_size = 3; }},
      {"stage is 2 in job gpt but 1", [](JobSpec& s) { s.stage = 1; }},
      {"optimizer.kind is adamw in job gpt but sgd", [](JobSpec& s) { s.optimizer = OptimizerKind::kSgd; }},
      {"shard_ranks is 0 in job gpt but 1", [](JobSpec& s) { s.shard_ranks = 1; }},
      {"number of optimizer.groups is 2", [](JobSpec& s) { s.groups.push_back("x"); }},
      {"accumulation_parts is 4 in job gpt but 2", [](JobSpec& s) { s.parts = 2; }},
      {"nominal_samples is 8 in job gpt but 4", [](JobSpec& s) { s.nominal_samples = 4; }},
      {"max_blob_bytes", [](JobSpec& s) { s.max_blob_bytes = 5; }},
      {"reduce_groups is 1 group in job gpt but 1,1 in bf16",
       [](JobSpec& s) {
         s.reduction = {{1, 1}, DType::kBFloat16};
       }},
      {"gather.hpz_partition is 0 in job gpt but 2", [](JobSpec& s) { s.gather.hpz_partition = 2; }},
      {"compute_dtype is fp32 in job gpt but bf16", [](JobSpec& s) { s.compute = DType::kBFloat16; }},
      {"staging_dtype is fp32 in job gpt but fp16", [](JobSpec& s) { s.staging = DType::kFloat16; }},
      {"loss_scale is 1 static in job gpt but 65536 dynamic, window 1000, hysteresis 2, floor 1",
       [](JobSpec& s) { s.loss_scale = DynamicLossScale(); }},
      {"stochastic_rounding", [](JobSpec& s) { s.stochastic_rounding = true; }},
      {"rounding_seed is 0 in job gpt but 4", [](JobSpec& s) { s.rounding_seed = 4; }},
      {"tensor 1 is b fp32[4] group 1 in job gpt but b fp32[5] group 1",
       [](JobSpec& s) {
         s.layout = *Layout::Create({{{"w", {3, 4}}, {"b", {5}, DType::kFloat32, 1}}});
       }},
      {"number of tensors is 2 in job gpt but 1",
       [](JobSpec& s) {
         s.layout = *Layout::Create({{{"w", {3, 4}}}});
       }},
      {"division into units",
       [](JobSpec& s) {
         s.layout = *Layout::Create({{{"w", {3, 4}}}, {{"b", {4}, DType::kFloat32, 1}}});
       }},
      {"number of buffers", [](JobSpec& s) { s.buffers.pop_back(); }},
      {"buffer 1 is batches I64[] in job gpt but batches I32[]",
       [](JobSpec& s) { s.buffers[1].dtype = "I32"; }},
  };
  for (const Case& c : cases) {
    JobSpec asked = Good();
    c.change(asked);
    const absl::Status status = CheckSame(Good(), asked);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << c.named;
    EXPECT_NE(status.message().find(c.named), std::string::npos) << c.named << " not in: " << status;
  }
}

TEST(JobSpecTest, ShardRanksForReplicas) {
  const auto ranks = [](std::vector<int32_t> hosts, int replicas) {
    JobSpec spec;
    spec.reduction.groups = std::move(hosts);
    return ShardRanksFor(spec, replicas).value_or(-1);
  };
  EXPECT_EQ(ranks({1, 1}, 1), 1);
  EXPECT_EQ(ranks({2, 2, 2, 2}, 1), 4);
  EXPECT_EQ(ranks({2, 2, 2, 2}, 2), 2) << "four copies, as three cannot be";
  EXPECT_EQ(ranks({1, 1, 1}, 1), 1);
  EXPECT_EQ(ranks({1, 3, 2, 2}, 1), 4) << "groups are equal, hosts need not be";
  EXPECT_EQ(ranks({1, 2}, 1), -1);
  EXPECT_EQ(ranks({1, 1}, 2), -1);
  EXPECT_EQ(ranks({}, 1), -1);
}

}  // namespace
}  // namespace sherd

#include "core/memory_plan.h"

#include <string>

#include "core/job_sizes.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

constexpr double kGB = 1e9;

PlanRequest Request(int64_t elements, int world, int ranks_per_host, DType compute) {
  PlanRequest r;
  r.job.layout = LayoutOfElements(elements, compute);
  r.job.groups = {"all"};
  r.job.job = "plan";
  r.job.compute = r.job.staging = compute;
  r.job.world_size = world;
  r.ranks_per_host = ranks_per_host;
  return r;
}

int64_t ItemOf(const SherdPlan& plan, const std::string& name) {
  for (const PlanItem& item : plan.items) {
    if (item.name == name) return item.bytes;
  }
  return -1;
}

// Figure 1 of the paper: 7.5B parameters, 64 ranks, mixed precision with Adam.
TEST(MemoryPlan, TheTextbooksOwnNumbers) {
  const PlanRequest r = Request(7'500'000'000, 64, 8, DType::kBFloat16);
  ASSERT_TRUE(Validate(r.job).ok()) << Validate(r.job);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 0).rank_bytes, 120 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 1).rank_bytes, 31.40625 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 2).rank_bytes, 16.640625 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).rank_bytes, 1.875 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 2).traffic_bytes, 2 * 2 * 7.5 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).traffic_bytes, 3 * 2 * 7.5 * kGB);
  EXPECT_EQ(PlanTextbook(r, 3).host_bytes, 0);
  // fp32 has no second copy: 4 + 4 + 8 bytes.
  const PlanRequest f = Request(1'000'000, 4, 4, DType::kFloat32);
  EXPECT_DOUBLE_EQ(PlanTextbook(f, 0).rank_bytes, 16e6);
  EXPECT_DOUBLE_EQ(PlanTextbook(f, 1).rank_bytes, 8e6 + 8e6 / 4);
  EXPECT_DOUBLE_EQ(PlanTextbook(f, 2).rank_bytes, 4e6 + 12e6 / 4);
}

TEST(MemoryPlan, OffloadingAsEstimated) {
  PlanRequest r = Request(1'000'000'000, 16, 8, DType::kFloat16);
  r.offload_optimizer = true;
  r.largest_layer_elements = 10'000'000;
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 2).rank_bytes, 2 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 2).host_bytes, 16 * kGB / 2 * 1.5);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).rank_bytes, 4 * 0.01 * kGB + 2 * kGB / 16);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).host_bytes, 16 * kGB / 2 * 1.5);
  r.offload_param = true;
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).rank_bytes, 4 * 0.01 * kGB);
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 3).host_bytes, 18 * kGB / 2 * 1.5);
  // In stages 0 to 2 parameters stay on the device.
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 1).rank_bytes, 2 * kGB);
}

TEST(MemoryPlan, FrozenParametersHaveNoGradientAndNoState) {
  PlanRequest r;
  r.job.layout =
      *Layout::Create({{{"a", {1024}, DType::kBFloat16}}, {{"b", {3072}, DType::kBFloat16, 0, false}}});
  r.job.compute = DType::kBFloat16;
  EXPECT_DOUBLE_EQ(PlanTextbook(r, 0).rank_bytes, 2 * 4096 + 14 * 1024);
}

TEST(MemoryPlan, OneHostHoldsOneCopy) {
  PlanRequest r = Request(64 << 20, 4, 4, DType::kFloat32);
  r.rank_page_bytes = 1000, r.owner_page_bytes = 100, r.control_bytes = 10, r.servers = 2;
  const int64_t plane = int64_t{4} * (64 << 20);
  const SherdPlan two = PlanSherd(r, 2);
  EXPECT_EQ(ItemOf(two, "plane.param"), plane);
  EXPECT_EQ(ItemOf(two, "plane.exp_avg"), plane);
  EXPECT_EQ(ItemOf(two, "plane.exp_avg_sq"), plane);
  EXPECT_EQ(ItemOf(two, "grad"), plane);
  EXPECT_EQ(ItemOf(two, "staging"), 4 * 2 * (4 << 20) * 4);  // a ring of two units for each rank
  EXPECT_EQ(ItemOf(two, "records"), 4 * 1000 + 2 * 100 + 10);
  EXPECT_EQ(ItemOf(PlanSherd(r, 0), "staging"), 4 * plane);
  EXPECT_EQ(PlanSherd(r, 1).host_bytes, PlanSherd(r, 0).host_bytes);
  EXPECT_EQ(PlanSherd(r, 3).stage, 3);
  EXPECT_EQ(PlanSherd(r, 3).host_bytes, two.host_bytes);  // one host: the segment is the parameters
  int64_t sum = 0;
  for (const PlanItem& item : two.items) sum += item.bytes;
  EXPECT_EQ(sum, two.host_bytes);
  // One more trainer adds what rank_bytes says.
  PlanRequest more = r;
  more.job.world_size = more.ranks_per_host = 5;
  EXPECT_EQ(PlanSherd(more, 1).host_bytes - PlanSherd(r, 1).host_bytes, PlanSherd(r, 1).rank_bytes);
  EXPECT_EQ(two.network_traffic_bytes, 0);
  r.job.world_size = r.ranks_per_host = 2;
  EXPECT_DOUBLE_EQ(PlanSherd(r, 2).memory_traffic_bytes, 40.0 * (64 << 20));  // bench/README.md: the step
  EXPECT_EQ(PlanSherd(r, 1).private_bytes, 0);
  r.accumulation = 4;
  EXPECT_EQ(PlanSherd(r, 1).private_bytes, plane);
  EXPECT_EQ(PlanSherd(r, 2).private_bytes, 0);
}

TEST(MemoryPlan, SixteenBitsAddACopyAndHalveTheStaging) {
  const PlanRequest r = Request(64 << 20, 4, 4, DType::kBFloat16);
  EXPECT_EQ(ItemOf(PlanSherd(r, 2), "plane.compute"), int64_t{2} * (64 << 20));
  EXPECT_EQ(ItemOf(PlanSherd(r, 0), "staging"), int64_t{4} * 2 * (64 << 20));
}

TEST(MemoryPlan, SeveralHostsShareThePlanes) {
  PlanRequest r = Request(64 << 20, 8, 4, DType::kFloat32);
  const int64_t plane = int64_t{4} * (64 << 20);
  EXPECT_EQ(r.hosts(), 2);
  EXPECT_EQ(ItemOf(PlanSherd(r, 2), "plane.param"), plane);
  EXPECT_EQ(ItemOf(PlanSherd(r, 2), "plane.exp_avg"), plane / 2);
  EXPECT_EQ(ItemOf(PlanSherd(r, 2), "exchange"), plane);  // half of it goes out, half comes in
  EXPECT_DOUBLE_EQ(PlanSherd(r, 2).network_traffic_bytes, 0.5 * 8 * (64 << 20));
  r.accumulation = 3;  // in stage 2 every part is reduced
  EXPECT_DOUBLE_EQ(PlanSherd(r, 2).network_traffic_bytes, 0.5 * (3 * 4 + 4) * (64 << 20));
  EXPECT_DOUBLE_EQ(PlanSherd(r, 1).network_traffic_bytes, 0.5 * 8 * (64 << 20));
  PlanRequest four = Request(64 << 20, 8, 2, DType::kBFloat16);
  EXPECT_EQ(ItemOf(PlanSherd(four, 2), "exchange"), 2 * 3 * (plane / 2) / 4);
  EXPECT_DOUBLE_EQ(PlanSherd(four, 2).network_traffic_bytes, 0.75 * 4 * (64 << 20));
  four.job.reduction = {{2, 2, 2, 2}, DType::kFloat32};
  EXPECT_DOUBLE_EQ(PlanSherd(four, 2).network_traffic_bytes, 0.75 * 6 * (64 << 20));
}

TEST(MemoryPlan, GroupsOfHostsHaveTheStateOnceEach) {
  PlanRequest r = Request(64 << 20, 8, 2, DType::kFloat32);
  r.job.shard_ranks = 4;  // two of four hosts
  const int64_t plane = int64_t{4} * (64 << 20);
  EXPECT_EQ(ItemOf(PlanSherd(r, 1), "plane.exp_avg"), plane / 2);
  EXPECT_EQ(ItemOf(PlanSherd(r, 1), "exchange"), plane + 3 * plane / 2);
  EXPECT_DOUBLE_EQ(PlanSherd(r, 1).network_traffic_bytes, (1.5 + 0.5) * 4 * (64 << 20));
  r.job.shard_ranks = 2;
  EXPECT_EQ(ItemOf(PlanSherd(r, 3), "plane.param"), plane);
  EXPECT_DOUBLE_EQ(PlanSherd(r, 3).network_traffic_bytes, 3.0 * 4 * (64 << 20));
}

TEST(MemoryPlan, OfSeveralHostsEachHasItsShareOfStage3) {
  PlanRequest r = Request(64 << 20, 8, 4, DType::kBFloat16);
  const int64_t elements = 64 << 20;
  const SherdPlan whole = PlanSherd(r, 3);
  EXPECT_EQ(ItemOf(whole, "plane.param"), 4 * elements / 2);
  EXPECT_EQ(ItemOf(whole, "plane.compute"), 2 * elements / 2);
  EXPECT_EQ(ItemOf(whole, "gathered"), 2 * elements / 2);  // the limit is far off
  EXPECT_DOUBLE_EQ(whole.network_traffic_bytes, 3 * 0.5 * 2 * elements);
  r.job.gather.max_live = 1 << 20;
  EXPECT_EQ(ItemOf(PlanSherd(r, 3), "gathered"), 2 << 20);
  EXPECT_EQ(ItemOf(PlanSherd(r, 2), "plane.compute"), 2 * elements);
  r.accumulation = 4;
  EXPECT_DOUBLE_EQ(PlanSherd(r, 3).network_traffic_bytes, (1 + 2) * 4 * 0.5 * 2 * elements);
  r.job.gather.hpz_partition = 4;  // kept: once a step, and the limit does not bound it
  EXPECT_EQ(ItemOf(PlanSherd(r, 3), "gathered"), 2 * elements / 2);
  EXPECT_DOUBLE_EQ(PlanSherd(r, 3).network_traffic_bytes, (4 + 1) * 0.5 * 2 * elements);
  EXPECT_DOUBLE_EQ(PlanSherd(r, 2).network_traffic_bytes, (4 + 1) * 0.5 * 2 * elements);
}

TEST(MemoryPlan, ModelsOfAnySize) {
  for (const int64_t elements : {int64_t{1}, int64_t{4} << 20, (int64_t{4} << 20) + 1,
                                 int64_t{1'000'000'000'000}, kMaxLayoutElements / 2}) {
    const Layout layout = LayoutOfElements(elements, DType::kFloat32);
    EXPECT_EQ(layout.total_elements(), elements);
    EXPECT_LE(layout.tensors().size(), 100001u);
  }
}

}  // namespace
}  // namespace sherd

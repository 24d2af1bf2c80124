// What every stage must keep, whatever the world size, the number of servers, the precision and the
// optimizer: the result is that of one process on the joint batch, bit for bit for the sums that this world
// size makes.
//
// Each case runs real engines over shared memory with everything at once: micro-batches (stages 2 and 3:
// accumulated by the owners), clipping by the global norm, tensors that are scalars, empty, frozen, odd,
// smaller than the number of owners or larger than a unit's others, one that no rank has a gradient for in
// some step, ranks that deliver in different orders, and an infinity on one rank that skips its step on all.
// Verdicts, masters, every plane of the optimizer, the 16-bit parameters and the loss scale are compared with
// the unsharded model's.
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/step/step_oracle.h"

namespace sherd::tests {
namespace {

// Optimizer, dtype of parameters and gradients, stage, world size, servers.
using Case = std::tuple<OptimizerKind, DType, int, int, int>;
class BehavioursTest : public ::testing::TestWithParam<Case> {};

JobSpec SpecOf(const Case& of) {
  const auto [optimizer, dtype, stage, world, servers] = of;
  JobSpec spec = StepSpec(world, stage, /*parts=*/stage >= 2 ? 2 : 1, optimizer);
  spec.compute = spec.staging = dtype;
  if (dtype == DType::kFloat16) {
    spec.loss_scale = DynamicLossScale();
    spec.loss_scale.initial = 512, spec.loss_scale.window = 2, spec.loss_scale.hysteresis = 1;
  }
  return spec;
}

TEST_P(BehavioursTest, AsInOneProcess) {
  const JobSpec spec = SpecOf(GetParam());
  ASSERT_TRUE(Validate(spec).ok()) << Validate(spec);
  const StepPlan plan{spec.parts, /*max_norm=*/0.5, /*absent=*/4, /*overflows=*/{3}};
  InProcessJob job(spec, std::get<4>(GetParam()));
  TrainAndCompare(job, 5, plan);
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  const auto [optimizer, dtype, stage, world, servers] = info.param;
  const char* const precision = dtype == DType::kFloat32    ? "fp32"
                                : dtype == DType::kBFloat16 ? "bf16"
                                                            : "fp16";
  return absl::StrCat(Name(optimizer), "_", precision, "_stage", stage, "_w", world, "_m", servers);
}

INSTANTIATE_TEST_SUITE_P(
    All, BehavioursTest,
    ::testing::Combine(::testing::Values(OptimizerKind::kSgd, OptimizerKind::kAdam, OptimizerKind::kAdamW,
                                         OptimizerKind::kAdagrad, OptimizerKind::kLion, OptimizerKind::kLamb,
                                         OptimizerKind::kMuon),
                       ::testing::Values(DType::kFloat32, DType::kBFloat16, DType::kFloat16),
                       ::testing::Values(0, 1, 2, 3), ::testing::Values(1, 2, 3, 4),
                       ::testing::Values(1, 2, 3)),
    CaseName);

}  // namespace
}  // namespace sherd::tests

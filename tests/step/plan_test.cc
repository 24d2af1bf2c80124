// What `sherd plan` foretells of a host's shared memory, beside the segments of a job that has made a step:
// equal to the byte.
#include <dirent.h>

#include <map>
#include <string>
#include <tuple>

#include "absl/strings/match.h"
#include "core/memory_plan.h"
#include "gtest/gtest.h"
#include "runtime/records.h"
#include "runtime/segment.h"
#include "tests/step/in_process_job.h"

namespace sherd::tests {
namespace {

JobSpec Spec(int world, int stage, OptimizerKind optimizer, DType dtype) {
  JobSpec spec;
  spec.job = "plan-test";
  spec.uuid = "u";
  spec.layout = *Layout::Create({{{"a", {700, 3}, dtype}, {"b", {}}, {"empty", {0, 4}, dtype}},
                                 {{"c", {5}, dtype}, {"d", {256}}, {"e", {1000}, dtype}},
                                 {{"big", {40, 300}, dtype}},
                                 {{"frozen", {300}, dtype, 0, false}}});
  spec.compute = spec.staging = dtype;
  spec.optimizer = optimizer;
  spec.groups = {"all"};
  spec.world_size = world;
  spec.stage = stage;
  spec.buffers = {{"mean", {33}, "F32"}};
  return spec;
}

// Bytes of payload in the job's directory, under the plan's names.
std::map<std::string, int64_t> Measured(const runtime::JobDir& job) {
  std::map<std::string, int64_t> bytes;
  DIR* const dir = ::opendir(job.path().c_str());
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    std::string item = name;
    if (absl::StartsWith(name, "staging.")) item = "staging";
    for (const char* page : {"rank.", "owner.", "members", "control"}) {
      if (absl::StartsWith(name, page)) item = "records";
    }
    for (uint32_t kind = 1; kind <= 9; ++kind) {  // whichever it is; what is no segment does not count
      const auto segment = runtime::Segment::Open(job, name, runtime::Segment::Access::kReadOnly,
                                                  static_cast<runtime::SegmentKind>(kind));
      if (segment.ok()) bytes[item] += segment->size();
    }
  }
  ::closedir(dir);
  return bytes;
}

class PlanTest : public testing::TestWithParam<std::tuple<int, int, int, OptimizerKind, DType>> {};

TEST_P(PlanTest, IsWhatAJobReserves) {
  const auto [world, servers, stage, optimizer, dtype] = GetParam();
  const JobSpec spec = Spec(world, stage, optimizer, dtype);
  InProcessJob job(spec, servers);
  for (int r = 0; r < world; ++r) {
    const std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
    client::StepWriter writer(memory.get(), Rank(r), client::StepWriter::Options());
    ASSERT_TRUE(writer.Resume().ok());
  }
  PlanRequest request;
  request.job = spec;
  request.ranks_per_host = world;
  request.servers = servers;
  request.rank_page_bytes = runtime::RankRecords::BytesFor(spec);
  request.owner_page_bytes = runtime::OwnerRecords::BytesFor(spec);
  request.control_bytes = static_cast<int64_t>(sizeof(runtime::ControlPage)) +
                          kMaxWorldSize * static_cast<int64_t>(sizeof(runtime::MemberEntry));
  const SherdPlan plan = PlanSherd(request, stage);
  std::map<std::string, int64_t> measured = Measured(job.memory().dir());
  int64_t sum = 0;
  for (const PlanItem& item : plan.items) {
    EXPECT_EQ(measured[item.name], item.bytes) << item.name;
    sum += measured[item.name];
  }
  EXPECT_EQ(plan.host_bytes, sum);
  EXPECT_EQ(measured.size(), plan.items.size()) << "a segment that the plan does not know";
}

INSTANTIATE_TEST_SUITE_P(Jobs, PlanTest,
                         testing::Combine(testing::Values(1, 3), testing::Values(1, 2),
                                          testing::Values(0, 1, 2),
                                          testing::Values(OptimizerKind::kAdamW, OptimizerKind::kSgd,
                                                          OptimizerKind::kLamb, OptimizerKind::kMuon),
                                          testing::Values(DType::kFloat32, DType::kBFloat16)));

}  // namespace
}  // namespace sherd::tests

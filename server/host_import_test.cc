// Imports of a job of several hosts: what each takes of one stream, and how they get their names and go; all
// hosts in one process.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/crc32c.h"
#include "runtime/formats/half.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"
#include "server/import_names.h"
#include "server/import_plan.h"
#include "server/import_sweeper.h"
#include "server/import_writer.h"
#include "server/own_blocks.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

void Add(v1::ImportManifest& manifest, const JobMemory& memory, const std::string& name,
         const std::string& plane, v1::DType dtype) {
  v1::ImportManifest::Tensor* const t = manifest.add_tensors();
  t->mutable_tensor()->set_name(name);
  t->mutable_tensor()->set_plane(plane);
  t->set_dtype(dtype);
  if (plane == "step") return;
  for (const int64_t n : memory.layout().Find(name)->spec.shape) t->add_shape(n);
}

class SharesTest : public ::testing::TestWithParam<int> {};

TEST_P(SharesTest, EachHostTakesWhatItOwns) {
  const int hosts = GetParam();
  runtime::TestRoot root("/dev/shm");
  std::vector<std::unique_ptr<TestHost>> all;
  for (int h = 0; h < hosts; ++h) all.push_back(std::make_unique<TestHost>(root.path(), h, hosts));
  const JobMemory& first = *all[0]->memory;
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);

  v1::ImportManifest manifest;
  std::string bytes;
  const auto value = [](int tensor, int plane, int64_t e) {
    return static_cast<float>((tensor * 7 + plane * 3 + e) % 251);
  };
  const auto add = [&](const std::string& name, int plane, bool half) {
    const TensorInfo& t = *first.layout().Find(name);
    Add(manifest, first, name, first.plane_name(plane), half ? v1::DTYPE_BFLOAT16 : v1::DTYPE_FLOAT32);
    for (int64_t e = 0; e < t.numel; ++e) {
      const float v = value(t.index, plane, e);
      const uint16_t h = formats::Bf16FromFloat(v);
      bytes.append(half ? reinterpret_cast<const char*>(&h) : reinterpret_cast<const char*>(&v),
                   half ? 2 : 4);
    }
  };
  add("v", 0, true);
  add("w", 0, false);
  add("empty", 0, false);
  Add(manifest, first, "w", "step", v1::DTYPE_FLOAT32);
  const float count = 41;
  bytes.append(reinterpret_cast<const char*>(&count), 4);
  add("scalar", 1, true);
  add("b", 0, true);
  add("w", 1, true);
  add("frozen", 0, false);

  const absl::StatusOr<ImportPlan> plan = PlanImport(first, manifest, false);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(PlanImport(first, manifest, true).status().code(), absl::StatusCode::kInvalidArgument);  // scalar
  std::vector<std::string> shares(hosts);
  size_t at = 0;
  for (const ImportRun& run : RunsOf(*plan, first)) {
    ASSERT_LE(at + run.bytes, bytes.size());
    for (int h = 0; h < hosts; ++h) {
      if (run.host == h || run.host == ImportRun::kAllHosts) shares[h].append(bytes, at, run.bytes);
    }
    at += run.bytes;
  }
  EXPECT_EQ(at, bytes.size());
  for (int h = 0; h < hosts; ++h) {
    SCOPED_TRACE(absl::StrCat("host ", h));
    const JobMemory& memory = *all[h]->memory;
    auto writer = ImportWriter::Create(&memory, *plan, false);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (size_t sent = 0; sent < shares[h].size();) {
      EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Finish()));
      v1::Chunk chunk;
      chunk.set_offset(sent);
      chunk.set_data(shares[h].substr(sent, 1 + rng() % 3000));
      chunk.set_crc32c(runtime::Crc32c(chunk.data()));
      ASSERT_TRUE((*writer)->Append(chunk).ok());
      sent += chunk.data().size();
    }
    ASSERT_TRUE((*writer)->Finish().ok());
    const absl::StatusOr<ImportSegment> import = ImportSegment::Open(memory, (*writer)->id());
    ASSERT_TRUE(import.ok()) << import.status();
    EXPECT_EQ(import->UpdateCount(first.layout().Find("w")->index), 41);
    for (const ImportPlan::Value& v : plan->values) {
      if (v.item.plane == ImportSegment::kUpdateCount) continue;
      const TensorInfo& t = memory.layout().tensors()[v.item.tensor];
      const BlockRange own = OwnBlocks(memory, t);
      for (int64_t b = own.begin; b < own.end; ++b) {
        const float* const got = import->Find(v.item.plane, b);
        ASSERT_NE(got, nullptr);
        for (int64_t i = 0; i < kBlockElements; ++i) {
          const int64_t e = (b - t.blocks.begin) * kBlockElements + i;
          ASSERT_EQ(got[i], e < t.numel ? value(t.index, v.item.plane, e) : 0) << t.spec.name << " " << e;
        }
      }
    }
    writer->reset();
    EXPECT_TRUE(ImportSegment::List(memory.dir()).empty());
  }
}
INSTANTIATE_TEST_SUITE_P(Hosts, SharesTest, ::testing::Values(1, 2, 3, 5));

class NamesTest : public ::testing::Test {
 protected:
  NamesTest() { BeginGeneration(memory_.control()); }
  uint64_t Make(uint64_t id = ImportSegment::UnnamedId()) {
    EXPECT_TRUE(ImportSegment::Create(memory_, id, {{0, 0}}).ok());
    return id;
  }
  uint64_t generation() const { return memory_.control().import_generation.load(); }
  absl::Status Name(uint64_t from, uint64_t to) { return NameImportHere(memory_, from, to, generation()); }
  std::vector<uint64_t> Swept(uint64_t decided = 0) {
    sweeper_.Sweep(memory_, decided, Step(5));
    std::vector<uint64_t> left = ImportSegment::List(memory_.dir());
    std::sort(left.begin(), left.end());
    return left;
  }
  using Ids = std::vector<uint64_t>;

  runtime::TestRoot root_{"/dev/shm"};
  TestHost host_{root_.path(), 1, 2};
  JobMemory& memory_ = *host_.memory;
  ImportSweeper sweeper_;
};

TEST_F(NamesTest, AreGivenOnce) {
  const uint64_t a = Make(), b = Make();
  EXPECT_TRUE(absl::IsNotFound(Name(ImportSegment::UnnamedId(), 4)));
  EXPECT_TRUE(absl::IsInvalidArgument(Name(3, 4)));
  EXPECT_TRUE(absl::IsInvalidArgument(Name(a, 0)));
  EXPECT_TRUE(absl::IsInvalidArgument(Name(a, b)));
  EXPECT_TRUE(Name(a, 4).ok());
  EXPECT_TRUE(Name(a, 4).ok());  // repeated
  EXPECT_EQ(Swept(), (Ids{4, b}));
  // It was never proposed, or not to this host's knowledge: whoever names the next import knows.
  EXPECT_TRUE(Name(b, 4).ok());
  EXPECT_EQ(Swept(), (Ids{4}));
  memory_.control().proposals.import = 4;
  EXPECT_TRUE(absl::IsFailedPrecondition(Name(Make(), 4)));
}

TEST_F(NamesTest, ThoseOfAnEarlierCoordinatorAreRefused) {
  const uint64_t before = generation(), a = Make(), b = Make(), c = Make();
  BeginGeneration(memory_.control());
  EXPECT_TRUE(absl::IsAborted(NameImportHere(memory_, a, 4, before)));
  // This host does not know the next coordinator yet, which has named one.
  EXPECT_TRUE(NameImportHere(memory_, b, 4, generation() + 1).ok());
  EXPECT_TRUE(absl::IsAborted(NameImportHere(memory_, c, 4, generation())));
  EXPECT_EQ(Swept().front(), 4);
}

TEST_F(NamesTest, GoOnceNobodyWillProposeThem) {
  ASSERT_TRUE(Name(Make(), 4).ok());
  EXPECT_EQ(Swept(), (Ids{4}));
  memory_.control().import_generation.fetch_add(1);  // given up
  EXPECT_EQ(Swept(), (Ids{}));
  ASSERT_TRUE(Name(Make(), 4).ok());
  memory_.control().proposals.import = 4;
  ASSERT_TRUE(Name(Make(), 5).ok());
  BeginGeneration(memory_.control());
  // The coordinator died; what it had proposed stays until all have stored it.
  EXPECT_EQ(Swept(), (Ids{4}));
  EXPECT_EQ(Swept(4), (Ids{}));
}

TEST_F(NamesTest, UnnamedOnesGoWithTheirProcess) {
  runtime::TestProcess other([&] {
    return ImportSegment::Create(memory_, ImportSegment::UnnamedId(), {{0, 0}}).ok() ? 0 : 1;
  });
  const uint64_t mine = Make();
  ASSERT_EQ(other.Join(), 0);
  EXPECT_EQ(ImportSegment::List(memory_.dir()).size(), 2);
  EXPECT_EQ(Swept(), (Ids{mine}));
}

TEST_F(NamesTest, RestoresGoWithTheirCoordinator) {
  const auto restore = [&] {
    const uint64_t id = ImportSegment::UnnamedId();
    absl::StatusOr<ImportSegment> import = ImportSegment::Create(memory_, id, {{0, 0}});
    EXPECT_TRUE(import.ok());
    import->SetGeneration(generation());
    return id;
  };
  const uint64_t push = Make(), a = restore();
  memory_.control().import_generation.fetch_add(1);  // something else was given up
  EXPECT_EQ(Swept(), (Ids{std::min(a, push), std::max(a, push)}));
  BeginGeneration(memory_.control());
  EXPECT_EQ(Swept(), (Ids{push}));
  const uint64_t b = restore();
  EXPECT_EQ(Swept(), (Ids{std::min(b, push), std::max(b, push)}));
  RemoveUnnamedRestores(memory_);
  EXPECT_EQ(Swept(), (Ids{push}));
}

TEST_F(NamesTest, ThoseOfStepRecordsGoSomeStepsLater) {
  const uint64_t id = ImportSegment::IdForStep();
  ASSERT_TRUE(NameImportHere(memory_, Make(), id, 0).ok());
  BeginGeneration(memory_.control());
  EXPECT_EQ(Swept(), (Ids{id}));
  sweeper_.Sweep(memory_, 0, Step(7));
  EXPECT_EQ(ImportSegment::List(memory_.dir()), (Ids{id}));
  sweeper_.Sweep(memory_, 0, Step(8));
  EXPECT_TRUE(ImportSegment::List(memory_.dir()).empty());
}

}  // namespace
}  // namespace sherd::server

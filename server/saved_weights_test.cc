// Weights that another program wrote, as a job sees them, and how readers share them out.
#include "server/saved_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/formats/half.h"
#include "runtime/formats/safetensors_file.h"
#include "runtime/test_root.h"
#include "server/restore_plan.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

using ::testing::HasSubstr;

struct Stored {
  std::string name;
  formats::StoredType type;
  std::vector<int64_t> shape;
};

// Whole numbers that all types hold.
float ValueOf(size_t i) { return static_cast<float>(i % 251) - 120; }

std::string Bytes(formats::StoredType type, size_t count) {
  std::string bytes(count * formats::SizeOf(type), '\0');
  for (size_t i = 0; i < count; ++i) {
    const float v = ValueOf(i);
    const uint16_t half =
        type == formats::StoredType::kF16 ? formats::Fp16FromFloat(v) : formats::Bf16FromFloat(v);
    if (formats::SizeOf(type) == 4) std::memcpy(&bytes[4 * i], &v, 4);
    if (formats::SizeOf(type) == 2) std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

void Write(const std::string& path, const std::vector<Stored>& tensors) {
  std::vector<formats::TensorSpec> specs;
  for (const Stored& t : tensors) specs.push_back({t.name, t.type, t.shape});
  absl::StatusOr<formats::FilePlan> plan = formats::LayOut(specs, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto writer = formats::SafetensorsWriter::Create(path, *plan, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const Stored& t : tensors) {
    const std::string bytes = Bytes(t.type, static_cast<size_t>(*CountElements(t.shape)));
    ASSERT_TRUE((*writer)->WriteAt(t.name, 0, bytes).ok());
  }
  ASSERT_TRUE((*writer)->Commit().ok());
}

class SavedWeightsTest : public ::testing::Test {
 protected:
  SavedWeightsTest() { job_.buffers = {{"mean", {5}, "F32"}, {"seen", {}, "I64"}}; }

  // A file of all that the job has, but for what `other` says instead.
  v1::RestoreFrom File(const std::vector<Stored>& other = {}) {
    std::vector<Stored> tensors = {
        {"w", formats::StoredType::kF32, {60, 50}},     {"b", formats::StoredType::kBF16, {7}},
        {"empty", formats::StoredType::kF32, {0, 3}},   {"scalar", formats::StoredType::kF16, {}},
        {"v", formats::StoredType::kF16, {11, 13, 17}}, {"frozen", formats::StoredType::kBF16, {900}},
        {"mean", formats::StoredType::kF32, {5}},       {"seen", formats::StoredType::kI64, {}},
        {"exp_avg/w", formats::StoredType::kF32, {1}},
    };
    for (const Stored& o : other) {
      auto at =
          std::find_if(tensors.begin(), tensors.end(), [&](const Stored& t) { return t.name == o.name; });
      if (at == tensors.end()) at = tensors.insert(at, o);
      *at = o;
    }
    v1::RestoreFrom from;
    from.set_directory(absl::StrCat(root_.path(), "/model.safetensors"));
    Write(from.directory(), tensors);
    return from;
  }

  runtime::TestRoot root_{"/dev/shm"};
  JobSpec job_ = SpecOfHosts(1);
};

TEST_F(SavedWeightsTest, ReadersTogetherReadEachElementOnce) {
  TestHost host(root_.path(), 0, 1);
  const v1::RestoreFrom from = File();
  ASSERT_TRUE(IsWeights(from.directory()));
  ASSERT_TRUE(IsWeights(root_.path()));
  const absl::StatusOr<RestorePlan> plan = RestorePlan::Open(from, job_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->weights_only());
  EXPECT_EQ(plan->Report(job_).matched_size(), 6);
  const int64_t blocks = job_.layout.total_blocks();
  for (const int shares : {1, 2, 3, 7}) {
    // What nobody stores stays as it is; padding becomes zeros.
    std::vector<float> plane(blocks * kBlockElements, -1e9f);
    std::vector<std::atomic<int>> times(blocks);
    RestoreTarget target;
    target.into = [&](int p, BlockRange range) {
      EXPECT_EQ(p, 0);
      return &plane[range.begin * kBlockElements];
    };
    target.stored = [&](int, int, BlockRange range) {
      for (int64_t b = range.begin; b < range.end; ++b) ++times[b];
    };
    int64_t bytes = 0;
    for (int share = 0; share < shares; ++share) {
      const absl::StatusOr<int64_t> read =
          ReadPart(*plan, *host.memory, {share, shares}, target, [] { return true; });
      ASSERT_TRUE(read.ok()) << read.status();
      bytes += *read;
    }
    EXPECT_EQ(bytes, blocks * kBlockElements * 4);
    for (const auto& t : times) EXPECT_EQ(t, 1) << shares;
    for (const TensorInfo& t : job_.layout.tensors()) {
      const float* const at = &plane[t.blocks.begin * kBlockElements];
      for (int64_t i = 0; i < t.blocks.size() * kBlockElements; ++i)
        ASSERT_EQ(at[i], i < t.numel ? ValueOf(i) : 0) << t.spec.name << " " << i;
    }
  }
}

TEST_F(SavedWeightsTest, WhatIsNotWantedIsNotRead) {
  TestHost host(root_.path(), 0, 1);
  const absl::StatusOr<RestorePlan> plan = RestorePlan::Open(File(), job_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const BlockRange middle{1, 2};
  std::vector<float> block(kBlockElements, -1);
  RestoreTarget target;
  target.wanted = [&](const TensorInfo& t, int) { return t.spec.name == "w" ? middle : BlockRange{}; };
  target.into = [&](int, BlockRange range) {
    EXPECT_EQ(range, middle);
    return block.data();
  };
  EXPECT_EQ(*ReadPart(*plan, *host.memory, {0, 1}, target, [] { return true; }), kBlockElements * 4);
  for (int64_t i = 0; i < kBlockElements; ++i) ASSERT_EQ(block[i], ValueOf(kBlockElements + i));
  const auto stopped = ReadPart(*plan, *host.memory, {0, 1}, target, [] { return false; });
  EXPECT_TRUE(absl::IsCancelled(stopped.status()));
}

TEST_F(SavedWeightsTest, BuffersComeAlong) {
  const absl::StatusOr<SavedCheckpoint> saved = OpenWeights(File(), job_);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(saved->spec.buffers, job_.buffers);
  const absl::StatusOr<CheckpointState> state = ReadWeightState(*saved);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->buffers.substr(runtime::BufferOffset(job_, 0), 20), Bytes(formats::StoredType::kF32, 5));
}

TEST_F(SavedWeightsTest, WhatDoesNotFitIsNamed) {
  const auto fails = [&](const Stored& other, absl::StatusCode code, const std::string& named,
                         bool partial_helps) {
    v1::RestoreFrom from = File({other});
    const absl::Status status = RestorePlan::Open(from, job_).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
    EXPECT_THAT(std::string(status.message()), HasSubstr(from.directory()));
    from.set_partial(true);
    EXPECT_EQ(RestorePlan::Open(from, job_).ok(), partial_helps) << named;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  fails({"w", formats::StoredType::kF32, {50, 60}}, kInvalid, "tensor w has shape [50,60]", true);
  fails({"v", formats::StoredType::kI32, {11, 13, 17}}, kInvalid, "tensor v is I32", false);
  fails({"mean", formats::StoredType::kF32, {6}}, kInvalid, "buffer mean is F32 [6] in the file", true);
  fails({"more", formats::StoredType::kI64, {2}}, kInvalid, "tensor more", true);
  fails({"sum/of", formats::StoredType::kF32, {2}}, kInvalid, "tensor sum/of", true);
  v1::RestoreFrom tagged = File();
  tagged.set_tag("step-1");
  EXPECT_THAT(std::string(RestorePlan::Open(tagged, job_).status().message()), HasSubstr("no tag step-1"));
}

TEST_F(SavedWeightsTest, OtherFilesAreNotTakenForOne) {
  EXPECT_FALSE(IsWeights(absl::StrCat(root_.path(), "/none.safetensors")));
  EXPECT_FALSE(IsWeights(root_.path()));
  File();
  EXPECT_TRUE(IsWeights(root_.path()));
  std::ofstream(absl::StrCat(root_.path(), "/latest")) << "step-1\n";
  EXPECT_FALSE(IsWeights(root_.path())) << "sherd save wrote here";
}

}  // namespace
}  // namespace sherd::server

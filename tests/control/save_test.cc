// Checkpoints over real sherdd processes: what is restored, at any number of servers and in another packing
// of tensors, is exactly what was saved.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/test_root.h"
#include "tests/control/control_job.h"

namespace sherd::tests {
namespace {

std::vector<std::string> Servers(int n) {
  std::vector<std::string> ids;
  for (int i = 0; i < n; ++i) ids.push_back(absl::StrCat("s", i));
  return ids;
}

// The same tensors in other units.
JobSpec Repacked() {
  JobSpec spec = ControlJob::Spec();
  std::vector<std::vector<TensorSpec>> units;
  for (const TensorInfo& t : spec.layout.tensors()) units.insert(units.begin(), {t.spec});
  std::rotate(units.begin(), units.begin() + 1, units.end());  // the frozen one last
  spec.layout = *Layout::Create(units);
  return spec;
}

class SaveTest : public ::testing::Test {
 protected:
  static grpc::Status Save(ControlJob& job, const std::string& at, v1::SaveRequest request,
                           v1::SaveProgress::Result* result) {
    grpc::ClientContext context;
    Prepare(&context);
    request.set_token(absl::StrCat("save ", at, request.tag()));
    const auto reader = job.Stub<v1::CheckpointService>(at)->Save(&context, request);
    bool cut = false;
    for (v1::SaveProgress m; reader->Read(&m);) {
      cut |= m.has_cut();
      if (m.has_result()) *result = m.result();
    }
    const grpc::Status s = reader->Finish();
    EXPECT_EQ(s.ok(), cut && !result->path().empty());
    return s;
  }
  v1::SaveProgress::Result SaveAt(ControlJob& job, const std::string& at) {
    v1::SaveRequest request;
    request.set_directory(folder());
    v1::SaveProgress::Result result;
    const grpc::Status s = Save(job, at, request, &result);
    EXPECT_TRUE(s.ok()) << s.error_message();
    return result;
  }
  std::string folder() const { return root_.path() + "/ck"; }

  // Planes of every tensor by name, its update count, and the buffers.
  static std::map<std::string, std::vector<float>> State(ControlJob& job, uint64_t step) {
    std::map<std::string, std::vector<float>> state;
    runtime::JobMemory& memory = job.memory();
    for (const TensorInfo& t : memory.layout().tensors()) {
      for (int p = 0; p < (t.spec.trainable ? memory.planes() : 1); ++p)
        state[absl::StrCat(memory.plane_name(p), "/", t.spec.name)] = job.Values(t.spec.name, p);
      state["updates/" + t.spec.name] = {static_cast<float>(memory.tensor_steps(Step(step))[t.index].load())};
    }
    state["updates"] = {static_cast<float>(memory.updates(Step(step)).load())};
    std::vector<float>& mean = state["buffer/mean"];
    mean.resize(3);
    std::memcpy(mean.data(), memory.rank(Rank(0)).buffers(Step(step)).data(), 12);
    return state;
  }

  static v1::RestoreFrom From(const std::string& directory, const std::string& tag = "") {
    v1::RestoreFrom from;
    from.set_directory(directory);
    from.set_tag(tag);
    return from;
  }

  runtime::TestRoot root_;
};

TEST_F(SaveTest, WhatIsRestoredIsExactlyWhatWasSaved) {
  std::map<std::string, std::vector<float>> saved, next;
  {
    ControlJob job(Servers(2));
    job.Attach();
    job.Initialise();
    job.Step(3);
    EXPECT_EQ(SaveAt(job, "s1").step(), 3u);
    saved = State(job, 3);
    job.Step(2);
    next = State(job, 5);
  }
  EXPECT_EQ(saved.at("updates/w"), std::vector<float>{3});
  for (const JobSpec& spec : {ControlJob::Spec(), Repacked()}) {
    for (const int servers : {1, 2, 3}) {
      SCOPED_TRACE(absl::StrCat(servers, " servers, ", spec.layout.units().size(), " units"));
      ControlJob job(Servers(servers), spec);
      EXPECT_EQ(job.AttachFrom(From(folder())).step(), 3u);
      job.Begin();
      EXPECT_EQ(State(job, 3), saved);
      EXPECT_EQ(job.Step(2), 5u);
      std::map<std::string, std::vector<float>> now = State(job, 5);
      // This trainer writes no buffers.
      now.erase("buffer/mean");
      std::map<std::string, std::vector<float>> want = next;
      want.erase("buffer/mean");
      EXPECT_EQ(now, want);
    }
  }
}

TEST_F(SaveTest, ARunningJobTakesTheValuesAndKeepsItsStep) {
  ControlJob job(Servers(3));
  job.Attach();
  job.Initialise();
  job.Step(2);
  SaveAt(job, "s2");
  const std::vector<float> w = job.Values("w"), moment = job.Values("w", 1);
  job.Step(4);
  ASSERT_NE(job.Values("w"), w);
  job.Detach();  // a boundary takes it up
  grpc::ClientContext context;
  Prepare(&context);
  v1::RestoreRequest request;
  request.set_token("back");
  *request.mutable_from() = From(folder(), "step-2");
  v1::RestoreResponse response;
  const grpc::Status s = job.Stub<v1::CheckpointService>("s1")->Restore(&context, request, &response);
  ASSERT_TRUE(s.ok()) << s.error_message();
  EXPECT_EQ(response.step(), 6u);
  EXPECT_EQ(response.restored().step(), 2u);
  EXPECT_EQ(response.restored().matched_size(), static_cast<int>(job.memory().layout().tensors().size()));
  EXPECT_EQ(job.Values("w"), w);
  EXPECT_EQ(job.Values("w", 1), moment);
  EXPECT_EQ(job.memory().tensor_steps(Step(6))[job.memory().layout().Find("w")->index].load(), 2u);
}

TEST_F(SaveTest, ASaveWithAStepIsCutByThatStepWhateverElseIsRead) {
  ControlJob job(Servers(2));
  job.Attach();
  job.Initialise();
  job.Step(1);
  grpc::ClientContext context;
  Prepare(&context);
  v1::SaveRequest request;
  request.set_token("with step 2");
  request.set_directory(folder());
  request.set_after_step(2);
  const auto reader = job.Stub<v1::CheckpointService>("s0")->Save(&context, request);
  v1::SaveProgress message;
  do {
    ASSERT_TRUE(reader->Read(&message)) << reader->Finish().error_message();
  } while (!message.has_cut());
  EXPECT_EQ(message.cut().tag(), "step-2");
  {
    // Somebody looks at the state before: that is cut at once, and is the state after step 1.
    grpc::ClientContext look;
    Prepare(&look);
    v1::SnapshotRequest snapshot;
    snapshot.set_token("look");
    v1::SnapshotInfo info;
    ASSERT_TRUE(job.Stub<v1::CheckpointService>("s1")->Snapshot(&look, snapshot, &info).ok());
    EXPECT_EQ(info.step(), 1u);
  }
  job.Step(1);
  const std::map<std::string, std::vector<float>> saved = State(job, 2);
  job.Step(3);
  while (reader->Read(&message)) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(message.result().step(), 2u);
  // A step that is stored already cannot be saved any more.
  request.set_token("with step 3");
  request.set_after_step(3);
  v1::SaveProgress::Result none;
  EXPECT_EQ(Save(job, "s0", request, &none).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ControlJob other(Servers(1));
  EXPECT_EQ(other.AttachFrom(From(folder())).step(), 2u);
  other.Begin();
  std::map<std::string, std::vector<float>> got = State(other, 2), want = saved;
  got.erase("buffer/mean"), want.erase("buffer/mean");
  EXPECT_EQ(got, want);
}

TEST_F(SaveTest, APushMayTakeManySteps) {
  ControlJob job(Servers(2));
  job.Attach();
  job.Initialise();
  grpc::ClientContext context;
  Prepare(&context);
  v1::PushResponse response;
  const auto writer = job.Stub<v1::CheckpointService>("s0")->Push(&context, &response);
  v1::PushRequest message;
  message.mutable_begin()->set_token("slow push");
  message.mutable_begin()->set_partial(true);
  v1::ImportManifest::Tensor* b = message.mutable_begin()->mutable_manifest()->add_tensors();
  b->mutable_tensor()->set_name("b");
  b->add_shape(7);
  b->set_dtype(v1::DTYPE_FLOAT32);
  ASSERT_TRUE(writer->Write(message));
  // The coordinator looks for imports that nobody names four times in a second.
  for (const absl::Time end = runtime::SteadyNow() + absl::Seconds(1); runtime::SteadyNow() < end;)
    job.Step(1);
  const float values[7] = {1, 2, 3, 4, 5, 6, 7};
  message.mutable_chunk()->set_data(reinterpret_cast<const char*>(values), sizeof(values));
  message.mutable_chunk()->set_crc32c(runtime::Crc32c(values, sizeof(values)));
  ASSERT_TRUE(writer->Write(message));
  message.mutable_commit();
  ASSERT_TRUE(writer->Write(message));
  writer->WritesDone();
  job.Detach();  // a boundary takes it up
  const grpc::Status s = writer->Finish();
  ASSERT_TRUE(s.ok()) << s.error_message();
  EXPECT_EQ(job.Values("b"), std::vector<float>(values, values + 7));
}

TEST_F(SaveTest, RanksMustAskForTheSameBeginning) {
  {
    ControlJob job(Servers(1));
    job.Attach();
    job.Initialise();
    SaveAt(job, "s0");
    const grpc::Status s = job.TryAttachFrom(From(folder()));
    EXPECT_EQ(s.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_TRUE(absl::StrContains(s.error_message(), "began with initial values of rank 0"))
        << s.error_message();
  }
  ControlJob job(Servers(1));
  EXPECT_EQ(job.TryAttachFrom(From(folder() + "/none")).error_code(), grpc::StatusCode::NOT_FOUND);
  // Nothing was made of it: the job may still begin.
  job.AttachFrom(From(folder()));
  const grpc::Status s = job.TryAttachFrom(From(folder(), "step-9"));
  EXPECT_TRUE(absl::StrContains(s.error_message(), "every rank must give the same")) << s.error_message();
}

TEST_F(SaveTest, ADamagedPartLeavesTheJobWithoutValues) {
  {
    ControlJob job(Servers(2));
    job.Attach();
    job.Initialise();
    job.Step(1);
    SaveAt(job, "s0");
  }
  const std::string part = folder() + "/step-1/part-00001-of-00002.safetensors";
  {
    std::fstream file(part, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(300000);
    const char c = static_cast<char>(file.get());
    file.seekp(300000);
    file.put(static_cast<char>(c ^ 8));
  }
  ControlJob job(Servers(2));
  job.AttachFrom(From(folder()));
  const grpc::Status s = job.TryBegin();
  EXPECT_EQ(s.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_TRUE(absl::StartsWith(s.error_message(), part + " is damaged: bytes 0 to")) << s.error_message();
  EXPECT_EQ(job.memory().control().initialized.load(), 0u);
}

// A trainer that was told that its save can not be missed may die, before the cut and behind it. Its
// successor may ask again, and has part in the same save.
TEST_F(SaveTest, ATrainersSaveGoesOnWithoutIt) {
  ControlJob job(Servers(2));
  job.Attach();
  job.Initialise();
  uint64_t done = job.Step(1);
  for (const bool cut : {false, true}) {
    SCOPED_TRACE(cut);
    v1::SaveRequest request;
    request.set_directory(folder());
    request.set_tag(cut ? "cut" : "uncut");
    request.set_token(absl::StrCat("save ", request.tag()));
    request.set_after_step(done + 1);
    request.set_rate_bytes_per_second(1 << 20);
    grpc::ClientContext context;
    Prepare(&context);
    const auto reader = job.Stub<v1::CheckpointService>("s1")->Save(&context, request);
    v1::SaveProgress m;
    while (reader->Read(&m) && !m.has_cut()) continue;
    ASSERT_TRUE(m.has_cut());
    if (cut) {
      done = job.Step(1);
      while (reader->Read(&m) && m.written_bytes() == 0) continue;
      ASSERT_GT(m.written_bytes(), 0);
    }
    context.TryCancel();
    while (reader->Read(&m)) continue;
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    grpc::ClientContext another;
    Prepare(&another);
    const auto joined = job.Stub<v1::CheckpointService>("s0")->Save(&another, request);
    ASSERT_TRUE(joined->Read(&m) && m.has_cut());
    if (!cut) done = job.Step(1);
    EXPECT_EQ(m.cut().step(), done);
    while (joined->Read(&m)) continue;
    EXPECT_TRUE(joined->Finish().ok());
    EXPECT_EQ(m.result().step(), done);
    std::ifstream manifest(folder() + "/" + request.tag() + "/manifest.json");
    EXPECT_TRUE(manifest.good());
    done = job.Step(1);
  }
}

}  // namespace
}  // namespace sherd::tests

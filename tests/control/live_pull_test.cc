// A pull of a job that nobody trains is sent from the job's memory: what happens when that changes meanwhile.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/crc32c.h"
#include "tests/control/control_job.h"

namespace sherd::tests {
namespace {

constexpr int64_t kElements = 8 << 20;  // more than connections hold

JobSpec Spec() {
  JobSpec spec = ControlJob::Spec();
  spec.layout = *Layout::Create({{{"values", {kElements}}}});
  return spec;
}

uint64_t Snapshot(ControlJob& job) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::SnapshotRequest request;
  request.set_token("live");
  v1::SnapshotInfo info;
  const grpc::Status s = job.Stub<v1::CheckpointService>("s0")->Snapshot(&context, request, &info);
  EXPECT_TRUE(s.ok()) << s.error_message();
  return info.id();
}

// Zeroes everywhere.
void Push(ControlJob& job) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::PushResponse response;
  const auto writer = job.Stub<v1::CheckpointService>("s0")->Push(&context, &response);
  v1::PushRequest message;
  message.mutable_begin()->set_token("zeroes");
  message.mutable_begin()->set_partial(true);
  v1::ImportManifest::Tensor* t = message.mutable_begin()->mutable_manifest()->add_tensors();
  t->mutable_tensor()->set_name("values");
  t->add_shape(kElements);
  t->set_dtype(v1::DTYPE_FLOAT32);
  ASSERT_TRUE(writer->Write(message));
  const std::string zeroes(1 << 20, '\0');
  for (uint64_t at = 0; at < kElements * 4; at += zeroes.size()) {
    message.mutable_chunk()->set_offset(at);
    message.mutable_chunk()->set_data(zeroes);
    message.mutable_chunk()->set_crc32c(runtime::Crc32c(zeroes));
    ASSERT_TRUE(writer->Write(message));
  }
  message.mutable_commit();
  ASSERT_TRUE(writer->Write(message));
  writer->WritesDone();
  const grpc::Status s = writer->Finish();
  ASSERT_TRUE(s.ok()) << s.error_message();
}

TEST(LivePullTest, WhatChangesBeforeItIsSentIsFoundAndComesWholeTheNextTime) {
  ControlJob job({"s0"}, Spec());
  job.Attach();
  job.Initialise();
  job.Detach();
  const std::vector<float> values = job.Values("values");
  const absl::string_view want(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  v1::PullRequest request;
  request.set_snapshot_id(Snapshot(job));
  request.add_tensors()->set_name("values");
  const auto stub = job.Stub<v1::CheckpointService>("s0");
  const auto is_whole = [&](const v1::Chunk& c) { return runtime::Crc32c(c.data()) == c.crc32c(); };
  uint64_t done = 0;
  bool pushed = false;
  {
    grpc::ClientContext context;
    Prepare(&context);
    const auto reader = stub->Pull(&context, request);
    bool whole = true;
    for (v1::Chunk chunk; reader->Read(&chunk);) {
      if (!pushed) Push(job);  // while the next chunks are on their way
      pushed = true;
      whole = whole && is_whole(chunk);
      if (!whole) continue;
      ASSERT_EQ(chunk.offset(), done);
      ASSERT_TRUE(chunk.data() == want.substr(done, chunk.data().size())) << done;
      done += chunk.data().size();
    }
    EXPECT_FALSE(whole) << "nothing changed on its way: this test tests nothing";
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::ABORTED);
  }
  grpc::ClientContext context;
  Prepare(&context);
  request.set_offset(done);
  const auto reader = stub->Pull(&context, request);
  for (v1::Chunk chunk; reader->Read(&chunk); done += chunk.data().size()) {
    ASSERT_EQ(chunk.offset(), done);
    ASSERT_TRUE(is_whole(chunk));
    ASSERT_TRUE(chunk.data() == want.substr(done, chunk.data().size())) << done;
  }
  const grpc::Status s = reader->Finish();
  EXPECT_TRUE(s.ok()) << s.error_message();
  EXPECT_EQ(done, want.size());
  EXPECT_EQ(job.Values("values"), std::vector<float>(kElements, 0.0f));
}

}  // namespace
}  // namespace sherd::tests

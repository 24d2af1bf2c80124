// A pull of a job that nobody trains is sent from the job's memory: what happens when that changes meanwhile.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/crc32c.h"
#include "tests/control/control_job.h"
#include "tests/control/push.h"

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
void PushZeroes(ControlJob& job) {
  const grpc::Status s = Push(job, "s0", "zeroes", /*partial=*/true,
                              {{"values", "param", {kElements}, std::vector<float>(kElements, 0.0f)}});
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
      if (!pushed) PushZeroes(job);  // while the next chunks are on their way
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

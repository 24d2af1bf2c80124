// Values in and out of a running job over real sherdd processes: reads, figures, pulls, pushes.
#include <atomic>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/formats/half.h"
#include "tests/control/control_job.h"
#include "tests/control/push.h"

namespace sherd::tests {
namespace {

using runtime::Crc32c;
using runtime::SteadyNow;

class ValuesTest : public ::testing::Test {
 protected:
  ValuesTest() : job_({"s0", "s1"}) {
    job_.Attach();
    job_.Initialise();
    job_.Step(2);
  }

  v1::SnapshotInfo Snapshot(const std::string& at, const std::vector<std::string>& planes,
                            const std::string& token, int64_t pool = 0) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::SnapshotRequest request;
    request.set_token(token);
    request.set_pool_bytes(pool);
    for (const std::string& p : planes) request.add_planes(p);
    v1::SnapshotInfo info;
    const grpc::Status s = job_.Stub<v1::CheckpointService>(at)->Snapshot(&context, request, &info);
    EXPECT_TRUE(s.ok()) << s.error_message();
    return info;
  }
  void Release(const std::string& at, uint64_t id) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::ReleaseRequest request;
    request.set_id(id);
    v1::ReleaseResponse response;
    EXPECT_TRUE(job_.Stub<v1::CheckpointService>(at)->Release(&context, request, &response).ok());
  }
  // Pulls from `offset`, at most `most` bytes, then breaks the stream if it goes on.
  grpc::Status Pull(const std::string& at, v1::PullRequest request, uint64_t offset, uint64_t most,
                    std::string* out) {
    grpc::ClientContext context;
    Prepare(&context);
    request.set_offset(offset);
    const auto reader = job_.Stub<v1::CheckpointService>(at)->Pull(&context, request);
    v1::Chunk chunk;
    while (out->size() < most && reader->Read(&chunk)) {
      EXPECT_EQ(chunk.offset(), offset);
      EXPECT_EQ(chunk.crc32c(), Crc32c(chunk.data()));
      offset += chunk.data().size();
      *out += chunk.data();
    }
    if (out->size() >= most) {
      context.TryCancel();
      reader->Finish();
      return grpc::Status::OK;
    }
    return reader->Finish();
  }
  static v1::PullRequest Everything(uint64_t snapshot) {
    v1::PullRequest request;
    request.set_snapshot_id(snapshot);
    const auto add = [&](const std::string& name, const char* plane) {
      request.add_tensors()->set_name(name);
      request.mutable_tensors(request.tensors_size() - 1)->set_plane(plane);
    };
    for (const TensorInfo& t : ControlJob::TheLayout().tensors()) add(t.spec.name, "param");
    add("w", "exp_avg");
    add("w", "step");
    add("mean", "buffer");
    return request;
  }
  // What Everything() yields of the job as it stands.
  std::string Expected(float updates) {
    std::string out;
    const auto append = [&](const void* p, size_t n) { out.append(static_cast<const char*>(p), n); };
    for (const TensorInfo& t : ControlJob::TheLayout().tensors()) {
      const std::vector<float> v = job_.Values(t.spec.name);
      append(v.data(), v.size() * 4);
    }
    const std::vector<float> m = job_.Values("w", 1);
    append(m.data(), m.size() * 4);
    append(&updates, 4);
    const Step step(static_cast<uint64_t>(updates));
    append(job_.memory().rank(Rank(0)).buffers(step).data(), 12);
    return out;
  }
  template <typename Done>
  bool Eventually(Done done) {
    for (const absl::Time end = SteadyNow() + absl::Seconds(20); SteadyNow() < end;) {
      if (done()) return true;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }

  ControlJob job_;
};

TEST_F(ValuesTest, ListsTensorsWithTheirOwners) {
  const auto shard = job_.Stub<v1::ShardService>("s1");
  std::vector<std::string> names;
  v1::ListTensorsRequest request;
  request.set_page_size(2);
  do {
    grpc::ClientContext context;
    Prepare(&context);
    v1::ListTensorsResponse page;
    ASSERT_TRUE(shard->ListTensors(&context, request, &page).ok());
    EXPECT_EQ(page.step(), 2);
    EXPECT_EQ(page.buffers_size(), request.page_token() == 0 ? 1 : 0);
    for (const auto& t : page.tensors()) {
      names.push_back(t.spec().name());
      const int64_t numel = ControlJob::TheLayout().Find(t.spec().name())->numel;
      int64_t at = 0;
      for (const auto& o : t.owners()) {
        EXPECT_EQ(o.begin_element(), at);
        EXPECT_EQ(o.server_id(), o.slot() == 0 ? "s0" : "s1");
        at = o.end_element();
      }
      EXPECT_EQ(at, numel);
      EXPECT_EQ(t.planes_size(), t.spec().frozen() ? 1 : 3);
    }
    request.set_page_token(page.next_page_token());
  } while (request.page_token() != 0);
  EXPECT_EQ(names, (std::vector<std::string>{"w", "b", "scalar", "big", "empty", "frozen"}));
}

TEST_F(ValuesTest, ReadsSlicesAndFigures) {
  const std::vector<float> w = job_.Values("w");
  for (const char* at : {"s0", "s1"}) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::ReadTensorRequest request;
    request.mutable_tensor()->set_name("w");
    v1::SliceDimension* rows = request.add_slice();
    rows->set_start(10);
    rows->set_stop(20);
    rows->set_step(3);
    request.add_slice();
    const auto reader = job_.Stub<v1::ShardService>(at)->ReadTensor(&context, request);
    v1::ReadTensorResponse message;
    ASSERT_TRUE(reader->Read(&message)) << reader->Finish().error_message();
    EXPECT_EQ(message.header().step(), 2);
    EXPECT_EQ(message.header().dtype(), "F32");
    EXPECT_EQ(message.header().bytes(), 4 * 70 * 4);
    ASSERT_TRUE(reader->Read(&message));
    float got[4 * 70];
    ASSERT_EQ(message.chunk().data().size(), sizeof(got));
    std::memcpy(got, message.chunk().data().data(), sizeof(got));
    for (int r = 0; r < 4; ++r) {
      for (int c = 0; c < 70; ++c) ASSERT_EQ(got[r * 70 + c], w[(10 + 3 * r) * 70 + c]);
    }
    EXPECT_FALSE(reader->Read(&message));
    EXPECT_TRUE(reader->Finish().ok());

    grpc::ClientContext stats_context;
    Prepare(&stats_context);
    v1::TensorStatsRequest stats;
    stats.set_glob("[wb]");
    stats.set_histogram_bins(4);
    const auto figures = job_.Stub<v1::ShardService>(at)->TensorStats(&stats_context, stats);
    v1::TensorStat stat;
    ASSERT_TRUE(figures->Read(&stat));
    EXPECT_EQ(stat.name(), "w");
    double squares = 0;
    for (const float v : w) squares += static_cast<double>(v) * v;
    EXPECT_NEAR(stat.norm(), std::sqrt(squares), 1e-9 * std::sqrt(squares));
    EXPECT_EQ(stat.max(), *std::max_element(w.begin(), w.end()));
    EXPECT_EQ(stat.histogram(0) + stat.histogram(1) + stat.histogram(2) + stat.histogram(3),
              static_cast<int64_t>(w.size()));
    ASSERT_TRUE(figures->Read(&stat));
    EXPECT_EQ(stat.name(), "b");
    EXPECT_FALSE(figures->Read(&stat));
    EXPECT_TRUE(figures->Finish().ok());
  }
  EXPECT_EQ(job_.Files("snap."), 0);
}

TEST_F(ValuesTest, RefusesReadsOfWhatIsNotThere) {
  const auto read = [&](const std::string& name, const std::string& plane, int64_t stop, uint64_t snapshot) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::ReadTensorRequest request;
    request.mutable_tensor()->set_name(name);
    request.mutable_tensor()->set_plane(plane);
    request.add_slice()->set_stop(stop);
    request.set_snapshot_id(snapshot);
    const auto reader = job_.Stub<v1::ShardService>("s1")->ReadTensor(&context, request);
    v1::ReadTensorResponse message;
    EXPECT_FALSE(reader->Read(&message));
    return reader->Finish().error_code();
  };
  EXPECT_EQ(read("nothing", "param", 1, 0), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(read("b", "nothing", 1, 0), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(read("frozen", "exp_avg", 1, 0), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(read("b", "param", 8, 0), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(read("b", "param", 1, 999), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ValuesTest, PullsOneStepWhileTrainingGoesOnAndResumesAnywhere) {
  const std::string expected = Expected(2);
  const v1::SnapshotInfo info = Snapshot("s1", {"param", "exp_avg", "buffer"}, "pull");
  EXPECT_EQ(info.step(), 2);
  EXPECT_EQ(Snapshot("s0", {"param"}, "pull").id(), info.id());  // the same token
  std::atomic<bool> stop{false};
  std::thread trainer([&] {
    while (!stop) job_.Step(1);
  });
  const v1::PullRequest request = Everything(info.id());
  std::string all;
  ASSERT_TRUE(Pull("s0", request, 0, UINT64_MAX, &all).ok());
  EXPECT_TRUE(all == expected);
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 rng(seed);
  for (int round = 0; round < 10; ++round) {
    // Broken somewhere, resumed at the other server.
    std::string got;
    const uint64_t first = rng() % expected.size() | 1;
    ASSERT_TRUE(Pull("s0", request, 0, first, &got).ok());
    ASSERT_TRUE(Pull("s1", request, got.size(), UINT64_MAX, &got).ok());
    ASSERT_TRUE(got == expected) << got.size();
    got.assign(expected, 0, first);
    ASSERT_TRUE(Pull("s1", request, first, UINT64_MAX, &got).ok());
    ASSERT_TRUE(got == expected) << first;
  }
  stop = true;
  trainer.join();
  Release("s1", info.id());
  EXPECT_EQ(job_.Files("snap."), 0);
  std::string none;
  EXPECT_EQ(Pull("s0", request, 0, UINT64_MAX, &none).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ValuesTest, PullsHalfPrecisionAtARate) {
  const v1::SnapshotInfo info = Snapshot("s0", {}, "rate");
  v1::PullRequest request;
  request.set_snapshot_id(info.id());
  request.add_tensors()->set_name("w");
  request.set_dtype(v1::DTYPE_BFLOAT16);
  request.set_rate_bytes_per_second(200000);
  std::string got;
  const absl::Time begun = SteadyNow();
  ASSERT_TRUE(Pull("s1", request, 0, UINT64_MAX, &got).ok());
  // 42,000 bytes at 200,000 a second; nothing is promised of the other side.
  EXPECT_GE(SteadyNow() - begun, absl::Milliseconds(150));
  const std::vector<float> w = job_.Values("w");
  ASSERT_EQ(got.size(), w.size() * 2);
  for (size_t i = 0; i < w.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, got.data() + 2 * i, 2);
    ASSERT_EQ(half, formats::Bf16FromFloat(w[i]));
  }
}

TEST_F(ValuesTest, ABrokenReadLeavesNothing) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::ReadTensorRequest request;
  request.mutable_tensor()->set_name("big");
  const auto reader = job_.Stub<v1::ShardService>("s1")->ReadTensor(&context, request);
  v1::ReadTensorResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  reader->Finish();
  EXPECT_TRUE(Eventually([&] { return job_.Files("snap.") == 0; }));
}

TEST_F(ValuesTest, AnAbandonedSnapshotExpires) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::SnapshotRequest request;
  request.set_token("idle");
  request.mutable_idle_timeout()->set_seconds(1);
  v1::SnapshotInfo info;
  ASSERT_TRUE(job_.Stub<v1::CheckpointService>("s0")->Snapshot(&context, request, &info).ok());
  EXPECT_EQ(job_.Files("snap."), 1);
  EXPECT_TRUE(Eventually([&] { return job_.Files("snap.") == 0; }));
}

TEST_F(ValuesTest, ASmallPoolIsLostAndSaysSo) {
  const v1::SnapshotInfo info = Snapshot("s0", {"param"}, "small", 4096);
  std::string got;
  // exp_avg is not in it.
  EXPECT_EQ(Pull("s1", Everything(info.id()), 0, UINT64_MAX, &got).error_code(), grpc::StatusCode::NOT_FOUND);
  job_.Step(1);
  v1::PullRequest request;
  request.set_snapshot_id(info.id());
  request.add_tensors()->set_name("w");
  EXPECT_EQ(Pull("s1", request, 0, UINT64_MAX, &got).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(got, "");
}

// ---- Push

std::vector<float> Ramp(int64_t n, float base) {
  std::vector<float> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = base + static_cast<float>(i % 1000);
  return v;
}

TEST_F(ValuesTest, PushesAreAllOrNothing) {
  const std::vector<float> w = job_.Values("w");
  const PushedTensor good{"w", "param", {300, 70}, Ramp(21000, 5)};
  const struct {
    const char* said;
    grpc::StatusCode code;
    bool partial;
    std::vector<PushedTensor> tensors;
    std::function<void(v1::Chunk&)> spoil;
  } cases[] = {
      {"tensor b is missing", grpc::StatusCode::INVALID_ARGUMENT, false, {good}, nullptr},
      {"[300,70] in this job but [70,300]",
       grpc::StatusCode::INVALID_ARGUMENT,
       true,
       {{"w", "param", {70, 300}, good.values}},
       nullptr},
      {"no tensor \"x\"", grpc::StatusCode::NOT_FOUND, true, {{"x", "param", {1}, {1}}}, nullptr},
      {"no plane \"x\"", grpc::StatusCode::NOT_FOUND, true, {{"w", "x", {1}, {1}}}, nullptr},
      {"comes twice", grpc::StatusCode::INVALID_ARGUMENT, true, {good, good}, nullptr},
      {"only 83996 were sent",
       grpc::StatusCode::INVALID_ARGUMENT,
       true,
       {{"w", "param", {300, 70}, Ramp(20999, 5)}},
       nullptr},
      {"has 84000 bytes but",
       grpc::StatusCode::INVALID_ARGUMENT,
       true,
       {{"w", "param", {300, 70}, Ramp(21001, 5)}},
       nullptr},
      {"crc32c",
       grpc::StatusCode::DATA_LOSS,
       true,
       {good},
       [](v1::Chunk& c) { (*c.mutable_data())[7] ^= 1; }},
      {"comes next",
       grpc::StatusCode::INVALID_ARGUMENT,
       true,
       {good},
       [](v1::Chunk& c) { c.set_offset(c.offset() + 1); }},
      {"is empty", grpc::StatusCode::INVALID_ARGUMENT, true, {}, nullptr},
  };
  for (const char* at : {"s0", "s1"}) {
    for (const auto& c : cases) {
      const grpc::Status s = Push(job_, at, c.said, c.partial, c.tensors, c.spoil);
      EXPECT_EQ(s.error_code(), c.code) << c.said << ": " << s.error_message();
      EXPECT_TRUE(absl::StrContains(s.error_message(), c.said)) << s.error_message();
    }
  }
  EXPECT_EQ(job_.Values("w"), w);
  EXPECT_EQ(job_.Files("import."), 0);
}

TEST_F(ValuesTest, PushesBetweenStepsAndAtTheEndOfOne) {
  // While a trainer is attached: with its next step.
  std::atomic<bool> stop{false};
  std::thread trainer([&] {
    while (!stop) job_.Step(1);
  });
  uint64_t step = 0;
  grpc::Status s = Push(job_, "s1", "live", true,
                        {{"frozen", "param", {300}, Ramp(300, 7)}, {"w", "step", {}, {100}}}, nullptr, &step);
  EXPECT_TRUE(s.ok()) << s.error_message();
  EXPECT_GE(step, 3);
  stop = true;
  trainer.join();
  EXPECT_EQ(job_.Values("frozen"), Ramp(300, 7));

  // Without: at once. Everything this time.
  job_.Detach();
  std::vector<PushedTensor> all;
  for (const TensorInfo& t : ControlJob::TheLayout().tensors())
    all.push_back({t.spec.name, "param", t.spec.shape, Ramp(t.numel, 40)});
  all.push_back({"w", "exp_avg", {300, 70}, Ramp(21000, -3)});
  s = Push(job_, "s0", "rest", false, all);
  ASSERT_TRUE(s.ok()) << s.error_message();
  for (const PushedTensor& t : all)
    EXPECT_TRUE(job_.Values(t.name, t.plane == "param" ? 0 : 1) == t.values) << t.name << t.plane;
  EXPECT_TRUE(Eventually([&] { return job_.Files("import.") == 0; }));
  // The count of updates that was pushed, and what followed.
  const v1::SnapshotInfo info = Snapshot("s0", {"param"}, "count");
  v1::PullRequest request;
  request.set_snapshot_id(info.id());
  request.add_tensors()->set_name("w");
  request.mutable_tensors(0)->set_plane("step");
  std::string got;
  ASSERT_TRUE(Pull("s1", request, 0, UINT64_MAX, &got).ok());
  float updates = 0;
  ASSERT_EQ(got.size(), 4);
  std::memcpy(&updates, got.data(), 4);
  EXPECT_EQ(updates, 100 + static_cast<float>(info.step() - step));
}

}  // namespace
}  // namespace sherd::tests

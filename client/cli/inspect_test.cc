#include "client/cli/inspect.h"

#include <cmath>
#include <limits>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/cli/resize.h"
#include "client/rpc/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/clock.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::Cluster SomeCluster() {
  v1::Cluster c;
  c.set_job("gpt");
  c.set_epoch(3);
  c.set_step(17);
  c.set_world_size(1);
  c.set_stage(2);
  c.set_servers(2);
  c.set_desired_servers(3);
  c.set_coordinator_id("s1");
  c.set_waiting_for("rank 0 to deliver");
  v1::Member* server = c.add_members();
  server->set_kind(v1::Member::KIND_SERVER);
  server->set_id("s1");
  server->add_slots(1);
  server->mutable_process()->set_pid(42);
  server->set_state(v1::Member::STATE_ACTIVE);
  server->set_owned_bytes(2048);
  v1::Member* trainer = c.add_members();
  trainer->set_kind(v1::Member::KIND_TRAINER);
  trainer->set_id("rank-0");
  trainer->set_state(v1::Member::STATE_STALLED);
  trainer->mutable_stalled_for()->set_seconds(5);
  return c;
}

class InspectTest : public ::testing::Test {
 protected:
  Context context(bool json) {
    return {client_, runtime::SteadyNow() + absl::Seconds(30), json, out_, progress_};
  }
  nlohmann::json Json() {
    nlohmann::json json = nlohmann::json::parse(out_.str(), nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(json.is_discarded()) << out_.str();
    out_.str("");
    return json;
  }
  runtime::TestRoot root_{"/tmp"};
  std::ostringstream out_;
  Progress progress_{false};
  rpc::FakeServer server_{root_.path() + "/s0.sock"};
  rpc::JobClient client_{{server_.endpoint()}, {}};
};

TEST_F(InspectTest, StatusTellsThePrecisionAndWhatWasSkipped) {
  v1::Cluster c = SomeCluster();
  EXPECT_THAT(StatusText(c), HasSubstr("precision   fp32\n"));
  EXPECT_THAT(StatusText(c), Not(HasSubstr("skipped")));
  c.mutable_precision()->set_compute(v1::DTYPE_FLOAT16);
  c.mutable_precision()->set_staging(v1::DTYPE_BFLOAT16);
  c.mutable_precision()->mutable_loss_scale()->set_dynamic(true);
  c.set_loss_scale(512);
  c.set_skipped_steps(3);
  c.set_training_error("step 9 overflowed");
  EXPECT_THAT(StatusText(c), HasSubstr("precision   fp16, gradients bf16, loss scale 512 (dynamic)\n"));
  EXPECT_THAT(StatusText(c), HasSubstr("skipped     3 steps whose gradients were not finite\n"));
  EXPECT_THAT(StatusText(c), HasSubstr("error       step 9 overflowed\n"));
  const nlohmann::json json = nlohmann::json::parse(StatusJson(c));
  EXPECT_EQ(json["compute_dtype"], "fp16");
  EXPECT_EQ(json["staging_dtype"], "bf16");
  EXPECT_EQ(json["loss_scale"], 512);
  EXPECT_EQ(json["skipped_steps"], 3);
  EXPECT_EQ(json["training_error"], "step 9 overflowed");
}

TEST_F(InspectTest, StatusAsTextAndAsJson) {
  const std::string text = StatusText(SomeCluster());
  EXPECT_THAT(text, HasSubstr("servers     2 (3 asked for)"));
  EXPECT_THAT(text, HasSubstr("waits for   rank 0 to deliver"));
  EXPECT_THAT(text, HasSubstr("s1*"));
  EXPECT_THAT(text, HasSubstr("stalled 5s"));
  const nlohmann::json json = nlohmann::json::parse(StatusJson(SomeCluster()));
  EXPECT_EQ(json["step"], 17);
  EXPECT_EQ(json["members"][0]["pid"], 42);
  EXPECT_EQ(json["members"][0]["trainer_pid"], nullptr);
  EXPECT_EQ(json["members"][1]["state"], "stalled");
  EXPECT_EQ(json["members"][1]["pid"], nullptr);
  EXPECT_EQ(json["members"][1]["stalled_seconds"], 5);
}

TEST_F(InspectTest, NamesThatAreNotUtf8DoNotBreakJson) {
  v1::Cluster c;
  c.set_job_dir("/dev/shm/\xff");
  EXPECT_FALSE(nlohmann::json::parse(StatusJson(c), nullptr, false).is_discarded());
}

TEST_F(InspectTest, TensorsWithTheirOwners) {
  server_.list_tensors = [](const v1::ListTensorsRequest& request, v1::ListTensorsResponse* out) {
    EXPECT_EQ(request.glob(), "w*");
    auto* t = out->add_tensors();
    t->mutable_spec()->set_name("wte");
    t->mutable_spec()->add_shape(6);
    t->mutable_spec()->set_dtype(v1::DTYPE_FLOAT32);
    for (const char* id : {"s0", ""}) {
      auto* owner = t->add_owners();
      owner->set_server_id(id);
      owner->set_slot(*id == '\0');
      owner->set_end_element(3);
    }
    return absl::OkStatus();
  };
  Context text = context(false), json = context(true);
  ASSERT_TRUE(ShowTensors(text, "w*").ok());
  EXPECT_THAT(out_.str(), HasSubstr("s0,slot 1 (vacant)"));
  out_.str("");
  ASSERT_TRUE(ShowTensors(json, "w*").ok());
  EXPECT_EQ(Json()["tensors"][0]["owners"][0]["server"], "s0");
}

TEST_F(InspectTest, FiguresThatAreNoNumbersAreNull) {
  server_.tensor_stats = [](const v1::TensorStatsRequest&,
                            const std::function<bool(const v1::TensorStat&)>& write) {
    v1::TensorStat stat;
    stat.set_name("w");
    stat.set_norm(std::numeric_limits<double>::infinity());
    stat.set_mean(0.5);
    write(stat);
    return absl::OkStatus();
  };
  Context json = context(true);
  ASSERT_TRUE(ShowStats(json, "", "").ok());
  const nlohmann::json stats = Json();
  EXPECT_EQ(stats["plane"], "param");
  EXPECT_EQ(stats["tensors"][0]["norm"], nullptr);
  EXPECT_EQ(stats["tensors"][0]["mean"], 0.5);
}

TEST_F(InspectTest, ResizeNamesItsJobAndTellsWhatItCost) {
  int asked = 0;
  server_.get_cluster = [&](const v1::GetClusterRequest&, v1::Cluster* out) {
    out->set_job("gpt");
    // At first nobody coordinates: it waits.
    if (++asked % 3 != 0) {
      out->set_waiting_for("etcd at 10.0.0.1:2379 does not answer");
    } else {
      out->set_coordinator_id("s0");
    }
    return absl::OkStatus();
  };
  server_.resize = [](const v1::ResizeRequest& request,
                      const std::function<bool(const v1::ResizeProgress&)>& write) {
    EXPECT_EQ(request.job(), "gpt");
    EXPECT_EQ(request.servers(), 4);
    v1::ResizeProgress progress;
    progress.set_progress("2 servers to join");
    write(progress);
    progress.mutable_result()->mutable_pause()->set_nanos(1500000);
    progress.mutable_result()->set_step(9);
    write(progress);
    return absl::OkStatus();
  };
  Context text = context(false), json = context(true);
  ASSERT_TRUE(Resize(text, 4, 0, 0, false).ok());
  EXPECT_THAT(out_.str(), HasSubstr("4 servers from step 10 on"));
  EXPECT_THAT(out_.str(), HasSubstr("pause 1.5 ms"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("join"))) << "progress is for terminals";
  out_.str("");
  ASSERT_TRUE(Resize(json, 4, 0, 0, false).ok());
  EXPECT_DOUBLE_EQ(Json()["pause_seconds"], 0.0015);
  EXPECT_EQ(asked, 6);
  text.deadline = runtime::SteadyNow() + absl::Milliseconds(150);
  EXPECT_EQ(Resize(text, 4, 0, 0, false),
            absl::DeadlineExceededError(
                "the resize to 4 servers was not begun in time: etcd at 10.0.0.1:2379 does not answer"));
}

TEST_F(InspectTest, Drain) {
  server_.get_cluster = [](const v1::GetClusterRequest&, v1::Cluster* out) {
    *out = SomeCluster();
    return absl::OkStatus();
  };
  std::vector<std::string> drained;
  server_.drain = [&](const v1::DrainRequest& request,
                      const std::function<bool(const v1::ResizeProgress&)>& write) {
    EXPECT_EQ(request.job(), "gpt");
    EXPECT_FALSE(request.token().empty());
    drained.push_back(request.id());
    v1::ResizeProgress progress;
    progress.mutable_result()->set_step(9);
    write(progress);
    return absl::OkStatus();
  };
  Context text = context(false), json = context(true);
  ASSERT_TRUE(DrainMember(text, "s1").ok());
  EXPECT_THAT(out_.str(), HasSubstr("without server s1 from step 10 on"));
  out_.str("");
  ASSERT_TRUE(DrainMember(json, "1").ok()) << "the holder of slot 1";
  EXPECT_EQ(Json()["drained"], "s1");
  EXPECT_EQ(drained, (std::vector<std::string>{"s1", "s1"}));
  for (const char* nobody : {"s7", "7", "0", "-1", ""}) {
    const absl::Status s = DrainMember(text, nobody);
    EXPECT_TRUE(absl::IsNotFound(s)) << nobody << " " << s;
    EXPECT_THAT(std::string(s.message()), HasSubstr("its servers are s1"));
  }
  EXPECT_EQ(drained.size(), 2u);
}

TEST_F(InspectTest, DrainOfTheLastTrainer) {
  int world = 1;
  server_.get_cluster = [&](const v1::GetClusterRequest&, v1::Cluster* out) {
    *out = SomeCluster();
    out->set_world_size(world);
    for (int r = 1; r < world; ++r) {
      v1::Member* m = out->add_members();
      m->set_kind(v1::Member::KIND_TRAINER);
      m->set_rank(r);
      m->set_id(absl::StrCat("rank-", r));
    }
    return absl::OkStatus();
  };
  server_.resize = [&](const v1::ResizeRequest& request,
                       const std::function<bool(const v1::ResizeProgress&)>& write) {
    EXPECT_EQ(request.trainers(), 2);
    EXPECT_EQ(request.servers(), 0);
    v1::ResizeProgress progress;
    progress.mutable_result()->set_step(9);
    write(progress);
    return absl::OkStatus();
  };
  Context text = context(false);
  EXPECT_THAT(std::string(DrainMember(text, "rank-0").message()), HasSubstr("is the only trainer"));
  world = 3;
  EXPECT_THAT(std::string(DrainMember(text, "rank-1").message()), HasSubstr("`sherd drain rank-2`"));
  ASSERT_TRUE(DrainMember(text, "rank-2").ok());
  EXPECT_THAT(out_.str(), HasSubstr("without rank-2 from step 10 on"));
}

}  // namespace
}  // namespace sherd::cli

// The control plane over real sherdd processes, on unix and TCP sockets: membership, takeover, resize,
// refusals.
#include <signal.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "tests/control/control_job.h"

namespace sherd::tests {
namespace {

const v1::Member* FindServer(const v1::Cluster& c, const std::string& id) {
  for (const v1::Member& m : c.members()) {
    if (m.kind() == v1::Member::KIND_SERVER && m.id() == id) return &m;
  }
  return nullptr;
}

bool HasSlot(const v1::Cluster& c, const std::string& id, int slot) {
  const v1::Member* m = FindServer(c, id);
  return m != nullptr && m->slots_size() == 1 && m->slots(0) == slot &&
         m->state() == v1::Member::STATE_ACTIVE;
}

v1::ResizeProgress::Result Resize(ControlJob& job, const std::string& at, int servers,
                                  const std::string& token) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::ResizeRequest request;
  request.set_job("ctl");
  request.set_token(token);
  request.set_servers(servers);
  const auto reader = job.Stub<v1::ClusterService>(at)->Resize(&context, request);
  v1::ResizeProgress message, last;
  while (reader->Read(&message)) last = message;
  const grpc::Status s = reader->Finish();
  EXPECT_TRUE(s.ok()) << s.error_message();
  EXPECT_TRUE(last.has_result()) << last.DebugString();
  return last.result();
}

TEST(Control, TrainsWithTwoServersAndTellsSo) {
  ControlJob job({"s0", "s1"});
  const v1::AttachResponse attached = job.Attach("s1");
  EXPECT_EQ(attached.job_dir(), job.dir().path());
  EXPECT_TRUE(attached.must_initialise());
  EXPECT_EQ(attached.incarnation(), 1);
  EXPECT_EQ(attached.servers(), 2);
  job.Initialise("s1");
  const float before = job.Values("w")[5];
  EXPECT_EQ(job.Step(3), 3);
  EXPECT_NE(job.Values("w")[5], before);

  const auto settled = [](const v1::Cluster& c) { return c.step() == 3 && c.waiting_for().empty(); };
  for (const char* id : {"s0", "s1"}) {
    const v1::Cluster c = job.WaitUntil(id, settled);
    EXPECT_EQ(c.job(), "ctl");
    EXPECT_EQ(c.world_size(), 1);
    EXPECT_EQ(c.servers(), 2);
    EXPECT_TRUE(c.initialized());
    EXPECT_EQ(c.total_elements(), ControlJob::TheLayout().total_elements());
    ASSERT_EQ(c.members_size(), 3);
    int64_t owned = 0;
    for (const v1::Member& m : c.members()) owned += m.owned_elements();
    EXPECT_EQ(owned, c.total_elements());
    EXPECT_EQ(FindServer(c, "s0")->trainer().pid(), ::getpid());
    EXPECT_EQ(c.members(2).state(), v1::Member::STATE_ACTIVE);
    EXPECT_GT(c.members(2).owned_bytes(), 0);
  }
  // The same over TCP.
  const auto tcp = v1::ClusterService::NewStub(
      grpc::CreateChannel(job.TcpAddress("s0"), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  Prepare(&context);
  v1::Cluster c;
  ASSERT_TRUE(tcp->GetCluster(&context, v1::GetClusterRequest(), &c).ok());
  EXPECT_EQ(c.step(), 3);
  job.Detach();
  EXPECT_EQ(
      job.WaitUntil("s0",
                    [](const v1::Cluster& c) { return c.members(2).state() == v1::Member::STATE_FINISHED; })
          .step(),
      3);
}

TEST(Control, ADeadServersSuccessorTakesItsSlotAndAnotherCoordinates) {
  ControlJob job({"s0", "s1"});
  job.Attach();
  job.Initialise();
  EXPECT_EQ(job.Step(2), 2);
  const std::string leader = job.WaitUntil("s0", [](const v1::Cluster&) { return true; }).coordinator_id();
  const std::string other = leader == "s0" ? "s1" : "s0";
  job.Kill(leader);
  // The other one leads, and waits for the dead one.
  v1::Cluster c = job.WaitUntil(other, [&](const v1::Cluster& c) {
    return c.coordinator_id() == other && FindServer(c, leader) != nullptr &&
           FindServer(c, leader)->state() == v1::Member::STATE_LOST;
  });
  EXPECT_TRUE(absl::StrContains(c.waiting_for(), leader)) << c.waiting_for();
  job.StartServer(leader, 2);
  EXPECT_EQ(job.Step(2), 4);
  c = job.WaitUntil(leader, [&](const v1::Cluster& c) { return c.waiting_for().empty(); });
  EXPECT_TRUE(HasSlot(c, leader, leader == "s0" ? 0 : 1)) << c.DebugString();
  EXPECT_EQ(FindServer(c, leader)->incarnation(), 2);
}

TEST(Control, AllServersDieAndComeBack) {
  ControlJob job({"s0", "s1"});
  job.Attach();
  job.Initialise();
  EXPECT_EQ(job.Step(1), 1);
  job.Kill("s0");
  job.Kill("s1");
  job.StartServer("s1", 2);
  job.StartServer("s0", 2);
  EXPECT_EQ(job.Step(1), 2);
}

TEST(Control, ResizesWhileTraining) {
  ControlJob job({"s0"});
  job.Attach();
  job.Initialise();
  job.StartServer("s1");
  job.StartServer("s2");
  std::atomic<bool> stop{false};
  std::thread trainer([&] {
    while (!stop) job.Step(1);
  });
  v1::ResizeProgress::Result up = Resize(job, "s2", 3, "up");
  EXPECT_EQ(up.moved_bytes(), 0);
  EXPECT_GT(up.changed_elements(), ControlJob::TheLayout().total_elements() / 2);
  EXPECT_GT(up.epoch(), 1);
  v1::Cluster c = job.WaitUntil("s0", [](const v1::Cluster& c) { return c.servers() == 3; });
  EXPECT_TRUE(HasSlot(c, "s2", 2)) << c.DebugString();
  // The same token again: the same resize, already done.
  EXPECT_EQ(Resize(job, "s0", 3, "up").epoch(), c.epoch());

  Resize(job, "s1", 1, "down");
  stop = true;
  trainer.join();
  // Servers that are not needed exit by themselves.
  for (const char* id : {"s1", "s2"}) {
    const absl::StatusOr<runtime::ExitStatus> end =
        job.server(id).Wait(runtime::SteadyNow() + absl::Seconds(20));
    ASSERT_TRUE(end.ok()) << end.status();
    EXPECT_TRUE(end->success()) << end->ToString();
  }
  job.Step(1);
}

TEST(Control, ResizesWithoutTrainers) {
  ControlJob job({"s0"});
  job.StartServer("s1");
  EXPECT_EQ(Resize(job, "s0", 2, "before any state").changed_elements(), 0);
  job.Attach();
  job.Initialise();
  EXPECT_EQ(job.Step(1), 1);
  job.Detach();
  EXPECT_GT(Resize(job, "s0", 1, "after the last").changed_elements(), 0);
}

TEST(Control, OrderlyEnds) {
  ControlJob job({"s0", "s1"});
  for (const char* id : {"s1", "s0"}) {
    ASSERT_TRUE(job.server(id).Signal(SIGTERM).ok());
    const absl::StatusOr<runtime::ExitStatus> end =
        job.server(id).Wait(runtime::SteadyNow() + absl::Seconds(20));
    ASSERT_TRUE(end.ok()) << end.status();
    EXPECT_TRUE(end->success()) << end->ToString();
  }
  EXPECT_EQ(job.Files("s0.sock") + job.Files("s1.sock"), 0);
}

TEST(Control, RefusesWhatIsWrong) {
  ControlJob job({"s0"});
  const auto shard = job.Stub<v1::ShardService>("s0");
  const auto attach = [&](const v1::AttachRequest& request) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::AttachResponse response;
    return shard->Attach(&context, request, &response);
  };
  {
    grpc::ClientContext no_deadline;
    v1::Cluster c;
    const grpc::Status s =
        job.Stub<v1::ClusterService>("s0")->GetCluster(&no_deadline, v1::GetClusterRequest(), &c);
    EXPECT_EQ(s.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << s.error_message();
  }
  v1::AttachRequest request = job.AttachRequest();
  request.set_job("other");
  EXPECT_EQ(attach(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request = job.AttachRequest();
  request.set_rank(1);
  EXPECT_EQ(attach(request).error_message(), "rank=1 is not in 0..0");
  request.set_rank(0);
  request.clear_token();
  EXPECT_EQ(attach(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  // Before there is any state.
  {
    grpc::ClientContext context;
    Prepare(&context);
    v1::ListTensorsResponse list;
    const grpc::Status s = shard->ListTensors(&context, v1::ListTensorsRequest(), &list);
    EXPECT_EQ(s.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << s.error_message();
  }
  job.Attach();
  request = job.AttachRequest();
  request.set_stage(2);
  const grpc::Status s = attach(request);
  EXPECT_EQ(s.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(s.error_message(), "stage is 1 in job ctl but 2")) << s.error_message();
}

TEST(Control, APlaceIsNotTakenFromOneThatLives) {
  ControlJob job({"s0"});
  runtime::ChildProcess::Options options;
  options.argv = {"/bin/sleep", "1000"};
  absl::StatusOr<runtime::ChildProcess> holder = runtime::ChildProcess::Spawn(options);
  ASSERT_TRUE(holder.ok()) << holder.status();
  const auto attach = [&](const v1::AttachRequest& request) {
    grpc::ClientContext context;
    Prepare(&context);
    v1::AttachResponse response;
    return job.Stub<v1::ShardService>("s0")->Attach(&context, request, &response);
  };
  v1::AttachRequest first = job.AttachRequest();
  const runtime::ProcessIdentity identity = holder->identity();
  first.mutable_process()->set_pid(identity.pid);
  first.mutable_process()->set_start_ticks(identity.start_ticks);
  first.set_token("first");
  ASSERT_TRUE(attach(first).ok());
  const grpc::Status second = attach(job.AttachRequest());
  EXPECT_EQ(second.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_TRUE(absl::StrContains(second.error_message(),
                                absl::StrCat("rank 0 of job ctl is held by process ", identity.pid)))
      << second.error_message();
  EXPECT_TRUE(runtime::IsAlive(identity)) << "the holder was killed";
  ASSERT_TRUE(holder->Signal(SIGKILL).ok());
  ASSERT_TRUE(holder->Wait(runtime::SteadyNow() + absl::Seconds(20)).ok());
  job.Attach();
}

// What sherdd says, and its exit status.
struct Ended {
  int code = -1;
  std::string said;
};
Ended RunServer(const std::vector<std::string>& arguments) {
  runtime::TestRoot logs;
  runtime::ChildProcess::Options options;
  options.argv = {"server/sherdd"};
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  options.stderr_stream = {runtime::ChildProcess::Stream::Kind::kFile, logs.path() + "/log"};
  absl::StatusOr<runtime::ChildProcess> child = runtime::ChildProcess::Spawn(options);
  EXPECT_TRUE(child.ok()) << child.status();
  Ended ended;
  const absl::StatusOr<runtime::ExitStatus> exit = child->Wait(runtime::SteadyNow() + absl::Seconds(20));
  if (exit.ok() && !exit->signaled) ended.code = exit->code;
  FILE* log = ::fopen((logs.path() + "/log").c_str(), "r");
  char text[4096];
  if (log != nullptr) {
    ended.said.assign(text, ::fread(text, 1, sizeof(text), log));
    ::fclose(log);
  }
  return ended;
}

TEST(Control, SaysInOneLineWhyItDoesNotStart) {
  ControlJob job({"s0"});
  const std::string tcp = job.TcpAddress("s0"), dir = job.dir().path();
  const struct {
    std::vector<std::string> arguments;
    int code;
    const char* said;
  } cases[] = {
      {{}, 2, "--job is required"},
      {{"--job", "ctl", "--bogus"}, 2, "--bogus"},
      {{"--job", "a/b"}, 2, "a/b"},
      {{"--job", "ctl", "--id", "a b", "--job-dir", dir}, 2, "--id a b"},
      {{"--job", "ctl", "--job-dir", "/nonexistent/ctl-00000000-0000-0000-0000-000000000000"},
       1,
       "/nonexistent"},
      {{"--job", "other", "--job-dir", dir}, 2, "is the directory of job ctl"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--listen", tcp}, 1, "in use"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--listen", "0.0.0.0:0"}, 2, "--allow-remote"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--listen", "nowhere"}, 2, "HOST:PORT"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--listen", "unix:" + dir + "/s0.sock"},
       1,
       "s0.sock"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--token-file", "/nonexistent"},
       1,
       "--token-file: cannot open the secret /nonexistent"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--listen", "0.0.0.0:0", "--allow-remote"},
       2,
       "give --token-file"},
      {{"--job", "ctl", "--id", "s9", "--job-dir", dir, "--store", "zookeeper://h:1"}, 2, "file:DIR"},
      // Another process with the name of a living server.
      {{"--job", "ctl", "--id", "s0", "--job-dir", dir, "--listen", "127.0.0.1:0"},
       1,
       "held by living process"},
  };
  for (const auto& c : cases) {
    std::vector<std::string> arguments = c.arguments;
    const Ended ended = RunServer(arguments);
    EXPECT_EQ(ended.code, c.code) << ended.said;
    EXPECT_TRUE(absl::StrContains(ended.said, c.said)) << ended.said << " lacks " << c.said;
    EXPECT_TRUE(absl::StrContains(ended.said, "sherdd: ")) << ended.said;
  }
}

}  // namespace
}  // namespace sherd::tests

#include "client/rpc/job_client.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstdio>
#include <set>
#include <thread>

#include "client/rpc/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"
#include "runtime/test_root.h"
#include "runtime/unique_fd.h"

namespace sherd::rpc {
namespace {

using ::testing::HasSubstr;
// Test roots stand in /tmp: a socket's path must be short.

absl::Time Soon() { return runtime::SteadyNow() + absl::Seconds(20); }

JobClient::Options Patient(absl::Duration patience) {
  JobClient::Options options;
  options.retry.patience = patience;
  options.first_patience = patience;
  return options;
}

auto Named(const std::string& job) {
  return [job](const v1::GetClusterRequest&, v1::Cluster* out) {
    out->set_job(job);
    return absl::OkStatus();
  };
}

TEST(JobClient, SaysWhoDoesNotAnswerAndWhatToDo) {
  runtime::TestRoot root("/tmp");
  JobClient client({"unix:" + root.path() + "/none.sock"}, Patient(absl::Milliseconds(100)));
  const absl::Status status = client.GetCluster({}, Soon()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no server answers at unix:" + root.path() + "/none.sock"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("No such file"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("sherd gc"));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

TEST(JobClient, GoesOnToTheServerThatAnswers) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s1.sock");
  server.get_cluster = Named("gpt");
  JobClient client({"unix:" + root.path() + "/s0.sock", server.endpoint()}, {});
  absl::StatusOr<v1::Cluster> cluster = client.GetCluster({}, Soon());
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ(cluster->job(), "gpt");
  EXPECT_EQ(client.endpoint(), server.endpoint());
}

TEST(JobClient, AServerThatIsStoppedDoesNotKeepItFromTheOthers) {
  runtime::TestRoot root("/tmp");
  // It takes connections, as the kernel does for a stopped process, and never says a word.
  runtime::UniqueFd stopped(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s/s0.sock", root.path().c_str());
  ASSERT_EQ(::bind(stopped.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(stopped.get(), 8), 0);
  FakeServer server(root.path() + "/s1.sock");
  server.get_cluster = Named("gpt");
  JobClient client({"unix:" + root.path() + "/s0.sock", server.endpoint()}, Patient(absl::Milliseconds(50)));
  const absl::Status status = client.GetCluster({}, Soon()).status();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(JobClient, ReachesAServerThatComesLate) {
  runtime::TestRoot root("/tmp");
  JobClient client({"unix:" + root.path() + "/s0.sock"}, Patient(absl::Seconds(1)));
  EXPECT_EQ(client.GetCluster({}, Soon()).status().code(), absl::StatusCode::kUnavailable);
  FakeServer server(root.path() + "/s0.sock");
  server.get_cluster = Named("gpt");
  const absl::Status status = client.GetCluster({}, Soon()).status();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(JobClient, OutlastsARestartOfItsServer) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  server.get_cluster = Named("gpt");
  JobClient client({server.endpoint()}, {});
  ASSERT_TRUE(client.GetCluster({}, Soon()).ok());
  server.Stop();
  runtime::Notification tried;
  std::thread restart([&] {
    tried.Wait();
    server.Start();
  });
  int attempts = 0;
  // The first attempt meets a dead server for sure; the restart happens while the client repeats.
  EXPECT_TRUE(client
                  .RetryUnavailable(Soon(),
                                    [&] {
                                      const absl::Status status =
                                          attempts++ == 0 ? absl::UnavailableError("first")
                                                          : client.GetCluster({}, Soon()).status();
                                      if (attempts == 1) tried.Notify();
                                      return status;
                                    })
                  .ok());
  restart.join();
}

TEST(JobClient, RepeatsMutationsWithTheSameToken) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  std::atomic<int> calls{0};
  std::string tokens;
  server.snapshot = [&](const v1::SnapshotRequest& request, v1::SnapshotInfo* out) {
    tokens += request.token();
    if (++calls < 3) return absl::UnavailableError("no coordinator at the moment");
    out->set_id(7);
    return absl::OkStatus();
  };
  JobClient client({server.endpoint()}, {});
  v1::SnapshotRequest request;
  request.set_token("abc");
  absl::StatusOr<v1::SnapshotInfo> info = client.Snapshot(request, Soon());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->id(), 7);
  EXPECT_EQ(tokens, "abcabcabc");
}

TEST(JobClient, KeepsCodeAndWordsOfTheServer) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  int calls = 0;
  server.get_cluster = [&](const v1::GetClusterRequest&, v1::Cluster*) {
    ++calls;
    return absl::NotFoundError("this server serves job \"a\", not \"b\"");
  };
  JobClient client({server.endpoint()}, {});
  EXPECT_EQ(client.GetCluster({}, Soon()).status(),
            absl::NotFoundError("this server serves job \"a\", not \"b\""));
  EXPECT_EQ(calls, 1) << "only UNAVAILABLE is repeated";
}

TEST(JobClient, PatienceEndsWithTheServersOwnWords) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  server.get_cluster = [](const v1::GetClusterRequest&, v1::Cluster*) {
    return absl::UnavailableError("no coordinator at the moment");
  };
  JobClient client({server.endpoint()}, Patient(absl::Milliseconds(100)));
  EXPECT_EQ(client.GetCluster({}, Soon()).status(), absl::UnavailableError("no coordinator at the moment"));
}

TEST(JobClient, ADeadlineEndsWithTheServersOwnWordsToo) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  server.get_cluster = [](const v1::GetClusterRequest&, v1::Cluster*) {
    return absl::UnavailableError("host 1 has said nothing for 1.6 s");
  };
  JobClient client({server.endpoint()}, {});
  EXPECT_EQ(client.GetCluster({}, runtime::SteadyNow() + absl::Milliseconds(300)).status(),
            absl::UnavailableError("host 1 has said nothing for 1.6 s"));
}

TEST(JobClient, StreamsAreReadInOrderAndStoppedByTheReader) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  server.watch_cluster = [](const v1::WatchClusterRequest&,
                            const std::function<bool(const v1::Cluster&)>& write) {
    v1::Cluster cluster;
    do {
      cluster.set_version(cluster.version() + 1);
    } while (write(cluster));
    return absl::OkStatus();
  };
  JobClient client({server.endpoint()}, {});
  uint64_t seen = 0;
  const absl::Status status = client.WatchCluster({}, Soon(), [&](v1::Cluster& cluster) {
    EXPECT_EQ(cluster.version(), ++seen);
    return seen == 100 ? absl::OutOfRangeError("enough") : absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OutOfRangeError("enough"));
  EXPECT_EQ(seen, 100);
}

TEST(JobClient, CancelEndsCallsAndRefusesNewOnes) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  runtime::Notification gone;
  server.watch_cluster = [&](const v1::WatchClusterRequest&,
                             const std::function<bool(const v1::Cluster&)>& write) {
    write({});
    gone.Wait();
    return absl::OkStatus();
  };
  JobClient client({server.endpoint()}, {});
  std::thread canceller;
  const absl::Status status = client.WatchCluster({}, Soon(), [&](v1::Cluster&) {
    canceller = std::thread([&] { client.Cancel(); });
    return absl::OkStatus();
  });
  canceller.join();
  gone.Notify();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(client.GetCluster({}, Soon()).status().code(), absl::StatusCode::kCancelled);
}

TEST(JobClient, UploadsUntilTheSenderOrTheServerEnds) {
  runtime::TestRoot root("/tmp");
  FakeServer server(root.path() + "/s0.sock");
  server.push = [](const std::function<bool(v1::PushRequest*)>& read, v1::PushResponse* out) {
    v1::PushRequest request;
    uint64_t bytes = 0;
    while (read(&request)) {
      if (request.has_chunk()) bytes += request.chunk().data().size();
      if (bytes > 1000) return absl::InvalidArgumentError("too many bytes");
    }
    out->set_step(bytes);
    return absl::OkStatus();
  };
  JobClient client({server.endpoint()}, {});
  int left = 5;
  const auto next = [&](v1::PushRequest* request) -> absl::StatusOr<bool> {
    if (left-- == 0) return false;
    request->mutable_chunk()->set_data("0123456789");
    return true;
  };
  absl::StatusOr<v1::PushResponse> done = client.Push(next, Soon());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->step(), 50);
  left = 1 << 30;
  EXPECT_EQ(client.Push(next, Soon()).status(), absl::InvalidArgumentError("too many bytes"));
  EXPECT_EQ(
      client
          .Push([](v1::PushRequest*) -> absl::StatusOr<bool> { return absl::DataLossError("file was cut"); },
                Soon())
          .status(),
      absl::DataLossError("file was cut"));
}

TEST(NewToken, Differs) {
  std::set<std::string> tokens;
  for (int i = 0; i < 100; ++i) tokens.insert(NewToken());
  EXPECT_EQ(tokens.size(), 100);
  EXPECT_EQ(tokens.begin()->size(), 16);
}

}  // namespace
}  // namespace sherd::rpc

// `sherd run` with real servers: exit statuses, restarts, signals, and what is left, which is nothing.
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/rpc/endpoints.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/job_dir.h"
#include "runtime/process_identity.h"
#include "runtime/test_root.h"
#include "tests/cluster/sherd_process.h"

namespace sherd::tests {
namespace {

using runtime::JobDir;
using runtime::kDefaultShmRoot;
using ::testing::HasSubstr;
using ::testing::Not;

// Becomes true within half a minute: nobody tells when a process that is not ours has tidied up.
bool Soon(const std::function<bool()>& condition) {
  for (int i = 0; i < 3000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(10));
  return condition();
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Pids of processes with `text` in their command line.
std::vector<int> ProcessesWith(const std::string& text) {
  std::vector<int> pids;
  DIR* proc = ::opendir("/proc");
  while (const dirent* entry = ::readdir(proc)) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid) || pid == ::getpid()) continue;
    if (absl::StrContains(ReadAll(absl::StrCat("/proc/", pid, "/cmdline")), text)) pids.push_back(pid);
  }
  ::closedir(proc);
  return pids;
}

class RunTest : public ::testing::Test {
 protected:
  // Unique to this process, so that other jobs of the host do not matter.
  std::string Job(const std::string& name) const { return absl::StrCat("t", ::getpid(), "-", name); }

  static std::vector<JobDir::Info> Dirs(const std::string& job) {
    std::vector<JobDir::Info> dirs;
    const absl::StatusOr<std::vector<JobDir::Info>> all = JobDir::List(kDefaultShmRoot);
    EXPECT_TRUE(all.ok()) << all.status();
    for (const JobDir::Info& dir : all.value_or(std::vector<JobDir::Info>())) {
      if (dir.job == job) dirs.push_back(dir);
    }
    return dirs;
  }
  static bool NothingLeft(const std::string& job) { return Dirs(job).empty() && ProcessesWith(job).empty(); }

  static SherdProcess::Result Run(std::vector<std::string> arguments) {
    return SherdProcess(std::move(arguments)).Wait();
  }

  // What `sherd status` says of a job.
  static nlohmann::json Status(const std::string& job) {
    const std::vector<JobDir::Info> dirs = Dirs(job);
    EXPECT_EQ(dirs.size(), 1) << job;
    if (dirs.empty()) return {};
    const auto endpoints = rpc::JobEndpoints(dirs[0].path);
    EXPECT_TRUE(endpoints.ok()) << endpoints.status();
    const SherdProcess::Result status =
        Run({"status", "--json", "--endpoint", absl::StrJoin(*endpoints, ",")});
    EXPECT_EQ(status.status, 0) << status.err;
    return nlohmann::json::parse(status.out, nullptr, /*allow_exceptions=*/false);
  }

  // The process of a member, or 0.
  static int LivePid(const std::string& job, const std::string& id) {
    const nlohmann::json status = Status(job);
    for (const nlohmann::json& m : status["members"]) {
      if (m["id"] == id && m["state"] != "lost" && m["pid"].is_number()) return m["pid"];
    }
    return 0;
  }

  runtime::TestRoot root_;
};

TEST_F(RunTest, TrainersThatSucceed) {
  const SherdProcess::Result run =
      Run({"run", "-n", "3", "--servers", "2", "--job", Job("ok"), "--", "sh", "-c",
           "echo rank $RANK of $WORLD_SIZE in $SHERD_JOB; echo aside >&2"});
  EXPECT_EQ(run.status, 0) << run.err;
  for (const char* line : {"rank 0 of 3", "[1] rank 1 of 3", "[2] rank 2 of 3"}) {
    EXPECT_THAT(run.out, HasSubstr(absl::StrCat(line, " in ", Job("ok"), "\n")));
  }
  EXPECT_THAT(run.out, Not(HasSubstr("[0]")));
  EXPECT_THAT(run.err, HasSubstr("[2] aside\n"));
  EXPECT_TRUE(NothingLeft(Job("ok")));
}

TEST_F(RunTest, TheFailingTrainersStatus) {
  const SherdProcess::Result run = Run({"run", "-n", "2", "--tag-output", "--job", Job("fail"), "--", "sh",
                                        "-c", "echo up; test $RANK = 0 && exec sleep 1000; exit 7"});
  EXPECT_EQ(run.status, 7);
  EXPECT_THAT(run.err, HasSubstr("trainer 1: exit 7"));
  EXPECT_THAT(run.out, HasSubstr("[1] up\n"));
  EXPECT_TRUE(NothingLeft(Job("fail")));
}

TEST_F(RunTest, KilledTrainersAreStartedAgainUntilTheirRestartsAreUsedUp) {
  const std::string counter = root_.path() + "/lives";
  SherdProcess::Result run = Run({"run", "-n", "1", "--restarts", "2", "--job", Job("kill"), "--", "sh", "-c",
                                  absl::StrCat("echo life >> ", counter, "; kill -9 $$")});
  EXPECT_EQ(run.status, 128 + SIGKILL);
  EXPECT_EQ(ReadAll(counter), "life\nlife\nlife\n");
  EXPECT_THAT(run.err, HasSubstr("trainer 0: killed by signal 9 (KILL) after 2 restarts"));
  run = Run(
      {"run", "-n", "1", "--job", Job("kill"), "--", "sh", "-c",
       absl::StrCat("test $(wc -l < ", counter, ") = 4 && exit 0; echo life >> ", counter, "; kill -9 $$")});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_THAT(run.err, HasSubstr("restart 1 of 3 in 100ms"));
  EXPECT_TRUE(NothingLeft(Job("kill")));
}

TEST_F(RunTest, BadInputIsOneLineAndLeavesNothing) {
  const std::string job = Job("bad");
  struct Case {
    std::vector<std::string> arguments;
    int status;
    std::string why;
  };
  const Case cases[] = {
      {{"run", "-n", "0", "--job", job, "--", "/bin/true"}, 2, "0 not in range"},
      {{"run", "-n", "-2", "--job", job, "--", "/bin/true"}, 2, "-2 not in range"},
      {{"run", "-n", "x", "--job", job, "--", "/bin/true"}, 2, "x"},
      {{"run", "--job", job, "--", "/bin/true"}, 2, "-n is required"},
      {{"run", "-n", "1", "--job", job}, 2, "command is required"},
      {{"run", "-n", "1", "--servers", "0", "--job", job, "--", "/bin/true"}, 2, "--servers"},
      {{"run", "-n", "1", "--bogus", "--job", job, "--", "/bin/true"}, 2, "--bogus"},
      {{"run", "-n", "1", "--job", job, "--", "no-such-program"},
       1,
       "no program \"no-such-program\" in PATH"},
      {{"run", "-n", "1", "--job", job, "--", "/etc/passwd"}, 1, "may not be executed"},
      {{"run", "-n", "1", "--job", "../" + job, "--", "/bin/true"}, 1, "job"},
      {{"run", "-n", "1", "--job", job, "--dir", "/proc/none", "--", "/bin/true"}, 1, "/proc/none"},
      {{"status", "--endpoint", "unix:/no/such.sock"}, 1, "no server answers at unix:/no/such.sock"},
      {{"status", "--endpoint", "nonsense"}, 1, "is no endpoint"},
      {{"pull", "--dtype", "int8", "x"}, 2, "int8"},
      {{"nonsense"}, 2, ""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrJoin(c.arguments, " "));
    const SherdProcess::Result run = Run(c.arguments);
    EXPECT_EQ(run.status, c.status);
    EXPECT_THAT(run.err, HasSubstr(c.why));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_EQ(run.out, "");
  }
  EXPECT_TRUE(NothingLeft(job));
}

TEST_F(RunTest, LogsAreKeptWhereAsked) {
  const std::string logs = root_.path() + "/kept";
  const SherdProcess::Result run =
      Run({"run", "-n", "1", "--job", Job("logs"), "--dir", logs, "--", "/bin/true"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_NE(ReadAll(logs + "/logs/s0.log"), "");
}

TEST_F(RunTest, CtrlCAndSigtermEndAllInOrder) {
  for (const int signal : {SIGINT, SIGTERM}) {
    SherdProcess run({"run", "-n", "2", "--job", Job("ctrlc"), "--", "sh", "-c", "echo up; exec sleep 1000"});
    run.WaitForLine("up");
    run.WaitForLine("[1] up");
    run.Signal(signal);
    const SherdProcess::Result result = run.Wait();
    EXPECT_EQ(result.status, 128 + signal) << result.err;
    EXPECT_THAT(result.err, HasSubstr("stopping"));
    EXPECT_TRUE(NothingLeft(Job("ctrlc")));
  }
}

TEST_F(RunTest, TheSecondCtrlCKills) {
  SherdProcess run({"run", "-n", "1", "--job", Job("twice"), "--", "sh", "-c",
                    "trap 'echo deaf' TERM INT; echo up; while :; do sleep 1000 & wait; done"});
  run.WaitForLine("up");
  run.Signal(SIGINT);
  run.WaitForLine("deaf");
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait().status, 128 + SIGINT);
  EXPECT_TRUE(NothingLeft(Job("twice")));
}

TEST_F(RunTest, AKillOfTheSupervisorLeavesNothing) {
  SherdProcess run({"run", "-n", "2", "--job", Job("orphan"), "--tag-output", "--", "sh", "-c",
                    "sleep 1000 & echo $!; wait"});
  std::vector<runtime::ProcessIdentity> grandchildren;
  for (const char* tag : {"[0] ", "[1] "}) {
    SCOPED_TRACE(tag);
    int pid = 0;
    const std::string line = run.WaitForLine("[");
    ASSERT_TRUE(absl::SimpleAtoi(line.substr(4), &pid)) << line;
    const auto identity = runtime::Identify(pid);
    ASSERT_TRUE(identity.ok()) << identity.status();
    grandchildren.push_back(*identity);
  }
  EXPECT_EQ(Dirs(Job("orphan")).size(), 1);
  run.Signal(SIGKILL);
  EXPECT_EQ(run.Wait().status, -SIGKILL);
  EXPECT_TRUE(Soon([&] { return NothingLeft(Job("orphan")); }));
  for (const runtime::ProcessIdentity& p : grandchildren) {
    EXPECT_TRUE(Soon([&] { return !runtime::IsAlive(p); }));
  }
}

TEST_F(RunTest, KilledServersAreStartedAgain) {
  const std::string job = Job("server");
  SherdProcess run(
      {"run", "-n", "1", "--servers", "2", "--job", job, "--", "sh", "-c", "echo up; exec sleep 1000"});
  run.WaitForLine("up");
  for (const char* id : {"s0", "s1"}) {
    const int before = LivePid(job, id);
    ASSERT_GT(before, 0);
    ::kill(before, SIGKILL);
    run.WaitForError(absl::StrCat("server ", id, ": killed by signal 9 (KILL); restart 1 of 3"));
    EXPECT_TRUE(Soon([&] {
      const int now = LivePid(job, id);
      return now != 0 && now != before;
    })) << id;
  }
  run.Signal(SIGTERM);
  EXPECT_EQ(run.Wait().status, 128 + SIGTERM);
  EXPECT_TRUE(NothingLeft(job));
}

TEST_F(RunTest, TwoJobsDoNotMeetAndANameIsTakenOnce) {
  const std::vector<std::string> wait = {"--", "sh", "-c", "echo up; exec sleep 1000"};
  const auto start = [&](const std::string& job) {
    std::vector<std::string> arguments = {"run", "-n", "1", "--job", job};
    arguments.insert(arguments.end(), wait.begin(), wait.end());
    return arguments;
  };
  SherdProcess a(start(Job("a"))), b(start(Job("b")));
  a.WaitForLine("up");
  b.WaitForLine("up");
  EXPECT_EQ(Status(Job("a"))["job"], Job("a"));
  EXPECT_EQ(Status(Job("b"))["job"], Job("b"));
  const SherdProcess::Result again = Run(start(Job("a")));
  EXPECT_EQ(again.status, 1);
  EXPECT_THAT(again.err, HasSubstr(Job("a")));
  a.Signal(SIGINT);
  EXPECT_EQ(a.Wait().status, 128 + SIGINT);
  EXPECT_TRUE(NothingLeft(Job("a")));
  EXPECT_EQ(Status(Job("b"))["job"], Job("b"));
  b.Signal(SIGINT);
  EXPECT_EQ(b.Wait().status, 128 + SIGINT);
}

TEST_F(RunTest, GcRemovesTheDeadAlone) {
  const auto start = [&](const std::string& job) {
    return std::vector<std::string>{
        "run", "-n", "1", "--job", job, "--", "sh", "-c", "echo up; exec sleep 1000"};
  };
  SherdProcess alive(start(Job("alive"))), dead(start(Job("dead")));
  alive.WaitForLine("up");
  dead.WaitForLine("up");
  // Whoever would tidy up dies first.
  std::vector<std::string> children = absl::StrSplit(
      ReadAll(absl::StrCat("/proc/", dead.pid(), "/task/", dead.pid(), "/children")), ' ', absl::SkipEmpty());
  int keeper = 0;
  for (const std::string& child : children) {
    if (ReadAll(absl::StrCat("/proc/", child, "/comm")) == "sherd-keeper\n") keeper = std::stoi(child);
  }
  ASSERT_GT(keeper, 0);
  ::kill(keeper, SIGKILL);
  dead.Signal(SIGKILL);
  dead.Wait();
  EXPECT_TRUE(Soon([&] { return ProcessesWith(Job("dead")).empty(); }));
  ASSERT_EQ(Dirs(Job("dead")).size(), 1);
  const std::string path = Dirs(Job("dead"))[0].path;
  const SherdProcess::Result gc = Run({"gc"});
  EXPECT_EQ(gc.status, 0) << gc.err;
  EXPECT_THAT(gc.out, HasSubstr(path));
  EXPECT_THAT(gc.out, Not(HasSubstr(Job("alive"))));
  EXPECT_TRUE(Dirs(Job("dead")).empty());
  EXPECT_EQ(Dirs(Job("alive")).size(), 1);
  alive.Signal(SIGTERM);
  EXPECT_EQ(alive.Wait().status, 128 + SIGTERM);
  EXPECT_TRUE(NothingLeft(Job("alive")));
}

}  // namespace
}  // namespace sherd::tests

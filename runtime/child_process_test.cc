#include "runtime/child_process.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using Kind = ChildProcess::Stream::Kind;

ChildProcess::Options Shell(const std::string& script) {
  ChildProcess::Options options;
  options.argv = {"sh", "-c", script};
  return options;
}

std::string ReadAll(const UniqueFd& fd) {
  std::string out;
  char buffer[256];
  for (ssize_t n; (n = ::read(fd.get(), buffer, sizeof(buffer))) > 0;)
    out.append(buffer, static_cast<size_t>(n));
  return out;
}

std::string ReadFile(const std::string& path) {
  std::stringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

std::string RunToEnd(const ChildProcess::Options& options) {
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(options);
  if (!child.ok()) return child.status().ToString();
  absl::StatusOr<ExitStatus> status = child->Wait(absl::InfiniteFuture());
  return status.ok() ? status->ToString() : status.status().ToString();
}

TEST(ChildProcess, SaysHowItEnded) {
  EXPECT_EQ(RunToEnd(Shell("exit 0")), "exit 0");
  EXPECT_EQ(RunToEnd(Shell("exit 3")), "exit 3");
  EXPECT_EQ(RunToEnd(Shell("kill -9 $$")), "killed by signal 9 (KILL)");
  EXPECT_EQ(RunToEnd(Shell("kill -SEGV $$")), "killed by signal 11 (SEGV)");
  EXPECT_TRUE((ExitStatus{false, 0}).success());
  EXPECT_FALSE((ExitStatus{true, 0}).success());
}

TEST(ChildProcess, ErrorsOfExecAreReported) {
  ChildProcess::Options options;
  EXPECT_TRUE(absl::IsInvalidArgument(ChildProcess::Spawn(options).status()));
  options.argv = {"/no/such/program"};
  EXPECT_TRUE(absl::IsNotFound(ChildProcess::Spawn(options).status()));
  options.argv = {"surely-no-such-program"};
  absl::Status missing = ChildProcess::Spawn(options).status();
  EXPECT_TRUE(absl::IsNotFound(missing));
  EXPECT_EQ(missing.message(), "cannot run surely-no-such-program: No such file or directory");
  options.argv = {"/dev/null"};
  EXPECT_TRUE(absl::IsPermissionDenied(ChildProcess::Spawn(options).status()));
  options = Shell("true");
  options.working_directory = "/no/such/directory";
  EXPECT_TRUE(absl::IsNotFound(ChildProcess::Spawn(options).status()));
  options = Shell("true");
  options.stdout_stream = {Kind::kFile, "/no/such/directory/file"};
  EXPECT_TRUE(absl::IsNotFound(ChildProcess::Spawn(options).status()));
}

TEST(ChildProcess, StreamsEnvironmentDirectory) {
  TestRoot root;
  ASSERT_EQ(::setenv("SHERD_TEST_GONE", "1", 1), 0);
  ASSERT_EQ(::setenv("SHERD_TEST_SET", "old", 1), 0);
  ChildProcess::Options options =
      Shell("echo \"$SHERD_TEST_SET|$SHERD_TEST_GONE|$SHERD_TEST_SETTLED\"; pwd; cat; echo err >&2");
  options.set_env = {{"SHERD_TEST_SET", "new"}};
  options.unset_env = {"SHERD_TEST_GONE"};
  options.working_directory = root.path();
  options.stdout_stream.kind = Kind::kPipe;
  options.stderr_stream = {Kind::kFile, root.path() + "/err"};
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(options);
    ASSERT_TRUE(child.ok()) << child.status();
    EXPECT_EQ(ReadAll(child->stdout_pipe()), "new||\n" + root.path() + "\n");
    EXPECT_TRUE(child->Wait(absl::InfiniteFuture())->success());
  }
  EXPECT_EQ(ReadFile(root.path() + "/err"), "err\nerr\n") << "a log is appended to";
  struct stat st;
  ASSERT_EQ(::stat((root.path() + "/err").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600);
}

TEST(ChildProcess, InheritsNoDescriptorOrMask) {
  sigset_t set, before;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, &before);
  ChildProcess::Options options = Shell("ls /proc/self/fd | wc -l; grep SigBlk /proc/self/status");
  options.stdout_stream.kind = Kind::kPipe;
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(options);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(child.ok());
  const std::string out = ReadAll(child->stdout_pipe());
  // 0, 1, 2 and the listing's own; this test's runner may have handed down one or two without close-on-exec.
  int count = 0;
  ASSERT_TRUE(absl::SimpleAtoi(out.substr(0, out.find('\n')), &count));
  EXPECT_LE(count, 8);
  EXPECT_NE(out.find("0000000000000000"), std::string::npos) << out;
}

TEST(ChildProcess, WaitLooksSignalEndsTerminateInsists) {
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(Shell("exec sleep 1000"));
  ASSERT_TRUE(child.ok());
  EXPECT_TRUE(IsAlive(child->identity()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(child->Wait(absl::InfinitePast()).status()));
  ASSERT_TRUE(child->Signal(SIGTERM).ok());
  EXPECT_EQ(child->Wait(absl::InfiniteFuture())->ToString(), "killed by signal 15 (TERM)");
  EXPECT_EQ(child->Wait(absl::InfinitePast())->code, SIGTERM) << "the answer stays";
  EXPECT_TRUE(child->Signal(SIGTERM).ok());

  ChildProcess::Options options = Shell("trap '' TERM; echo ready; while :; do sleep 1000; done");
  options.stdout_stream.kind = Kind::kPipe;
  absl::StatusOr<ChildProcess> stubborn = ChildProcess::Spawn(options);
  ASSERT_TRUE(stubborn.ok());
  char c;
  ASSERT_EQ(::read(stubborn->stdout_pipe().get(), &c, 1), 1);
  EXPECT_EQ(stubborn->Terminate(absl::Milliseconds(20))->ToString(), "killed by signal 9 (KILL)");
}

// Its helpers go with it: each holds the pipe open, so that reading to the end waits for all of them.
TEST(ChildProcess, GroupGoesWithIt) {
  ChildProcess::Options options = Shell("sleep 1000 & sleep 1000 & echo ready; exit 5");
  options.stdout_stream.kind = Kind::kPipe;
  absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(options);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->Wait(absl::InfiniteFuture())->ToString(), "exit 5");
  EXPECT_EQ(ReadAll(child->stdout_pipe()), "ready\n");
}

TEST(ChildProcess, DestructionAndAssignmentKill) {
  ProcessIdentity first, second;
  {
    ChildProcess child = *ChildProcess::Spawn(Shell("exec sleep 1000"));
    first = child.identity();
    child = *ChildProcess::Spawn(Shell("exec sleep 1000"));
    second = child.identity();
    EXPECT_FALSE(IsAlive(first));
    EXPECT_TRUE(IsAlive(second));
    ChildProcess moved = std::move(child);
    EXPECT_TRUE(IsAlive(second));
  }
  EXPECT_FALSE(IsAlive(second));
  EXPECT_TRUE(absl::IsNotFound(Identify(second.pid).status())) << "reaped";
}

TEST(ChildProcess, DiesWithItsParent) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  TestProcess parent([&] {
    absl::StatusOr<ChildProcess> child = ChildProcess::Spawn(Shell("exec sleep 1000"));
    if (!child.ok()) return 1;
    const ProcessIdentity id = child->identity();
    if (::write(fds[1], &id, sizeof(id)) != sizeof(id)) return 2;
    ::raise(SIGKILL);
    return 0;
  });
  ProcessIdentity grandchild;
  ASSERT_EQ(::read(fds[0], &grandchild, sizeof(grandchild)), static_cast<ssize_t>(sizeof(grandchild)));
  EXPECT_EQ(parent.Join(), -SIGKILL);
  absl::StatusOr<UniqueFd> pidfd = OpenPidfd(grandchild);
  if (pidfd.ok()) {
    EXPECT_TRUE(*PollReadable(pidfd->get(), SteadyNow() + absl::Seconds(60)));
  }
  ::close(fds[0]);
  ::close(fds[1]);
}

}  // namespace
}  // namespace sherd::runtime

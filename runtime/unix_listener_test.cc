#include "runtime/unix_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

class UnixListenerTest : public ::testing::Test {
 protected:
  // Writes one byte to each peer, so that a client's read tells it was accepted.
  UnixListener::Options Greeter() {
    UnixListener::Options options;
    options.path = path_;
    options.on_connection = [this](UnixPeer peer) {
      MutexLock lock(mu_);
      peers_.push_back(std::move(peer));
      (void)::send(peers_.back().fd.get(), "!", 1, MSG_NOSIGNAL);  // one that only looked is gone
    };
    return options;
  }
  // True when the listener greets.
  static bool Greets(const std::string& path) {
    absl::StatusOr<UniqueFd> fd = ConnectUnix(path);
    char c;
    return fd.ok() && ::read(fd->get(), &c, 1) == 1 && c == '!';
  }
  bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

  TestRoot root_{"/dev/shm"};
  const std::string path_ = root_.path() + "/s.sock";
  Mutex mu_;
  std::vector<UnixPeer> peers_ ABSL_GUARDED_BY(mu_);
};

TEST_F(UnixListenerTest, AcceptsAndNamesPeers) {
  auto listener = UnixListener::Start(Greeter());
  ASSERT_TRUE(listener.ok()) << listener.status();
  struct stat st;
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600);
  EXPECT_TRUE(Greets(path_));
  TestProcess other([&] { return Greets(path_) ? 0 : 1; });
  const pid_t pid = other.identity().pid;
  EXPECT_EQ(other.Join(), 0);
  MutexLock lock(mu_);
  ASSERT_EQ(peers_.size(), 2u);
  EXPECT_EQ(peers_[0].pid, ::getpid());
  EXPECT_EQ(peers_[0].uid, ::geteuid());
  EXPECT_EQ(peers_[1].pid, pid);
  EXPECT_EQ((*listener)->refused(), 0);
}

TEST_F(UnixListenerTest, StopLeavesNothing) {
  auto listener = UnixListener::Start(Greeter());
  ASSERT_TRUE(listener.ok());
  std::thread second([&] { (*listener)->Stop(); });
  (*listener)->Stop();
  second.join();
  EXPECT_FALSE(Exists(path_));
  EXPECT_FALSE(Exists(path_ + ".lock"));
  EXPECT_TRUE(absl::IsNotFound(ConnectUnix(path_).status()));
}

TEST_F(UnixListenerTest, LiveSocketIsNotReplaced) {
  auto first = UnixListener::Start(Greeter());
  ASSERT_TRUE(first.ok());
  auto second = UnixListener::Start(Greeter());
  EXPECT_TRUE(absl::IsAlreadyExists(second.status()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(path_));
  EXPECT_TRUE(Greets(path_));
}

TEST_F(UnixListenerTest, DeadSocketIsReplaced) {
  TestProcess server([&] {
    auto listener = UnixListener::Start(Greeter());
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(server.Join(), -SIGKILL);
  EXPECT_TRUE(Exists(path_));
  EXPECT_TRUE(absl::IsUnavailable(ConnectUnix(path_).status()));
  auto listener = UnixListener::Start(Greeter());
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(Greets(path_));
}

TEST_F(UnixListenerTest, SocketOfAnotherProgramIsNotReplaced) {
  auto listener = UnixListener::Start(Greeter());
  ASSERT_TRUE(listener.ok());
  // Without the lock file it looks like any other program's socket.
  ASSERT_EQ(::unlink((path_ + ".lock").c_str()), 0);
  EXPECT_TRUE(absl::IsAlreadyExists(UnixListener::Start(Greeter()).status()));
  EXPECT_TRUE(Greets(path_));
}

TEST_F(UnixListenerTest, OneOfManyReplacesADeadSocket) {
  TestProcess server([&] {
    auto listener = UnixListener::Start(Greeter());
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(server.Join(), -SIGKILL);
  std::vector<std::unique_ptr<UnixListener>> started(6);
  std::vector<std::thread> threads;
  for (auto& slot : started) {
    threads.emplace_back([&] {
      auto listener = UnixListener::Start(Greeter());
      if (listener.ok()) slot = *std::move(listener);
    });
  }
  for (std::thread& t : threads) t.join();
  int running = 0;
  for (auto& slot : started) running += slot != nullptr;
  EXPECT_EQ(running, 1);
  EXPECT_TRUE(Greets(path_));
}

TEST_F(UnixListenerTest, OtherUsersAreRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Mutex mu;
  std::vector<uid_t> refused;
  UnixListener::Options options = Greeter();
  options.on_refused = [&](pid_t, uid_t uid) {
    MutexLock lock(mu);
    refused.push_back(uid);
  };
  auto listener = UnixListener::Start(std::move(options));
  ASSERT_TRUE(listener.ok());
  // Even where the file's mode would let them in.
  ASSERT_EQ(::chmod(path_.c_str(), 0777), 0);
  ASSERT_EQ(::chmod(root_.path().c_str(), 0755), 0);
  TestProcess stranger([&] {
    if (::setuid(12) != 0) return 2;
    absl::StatusOr<UniqueFd> fd = ConnectUnix(path_);
    if (!fd.ok()) return 3;
    char c;
    return ::read(fd->get(), &c, 1) == 0 ? 0 : 1;
  });
  EXPECT_EQ(stranger.Join(), 0);
  (*listener)->Stop();
  EXPECT_EQ((*listener)->refused(), 1);
  MutexLock lock(mu);
  EXPECT_EQ(refused, std::vector<uid_t>{12});
}

TEST_F(UnixListenerTest, BadPaths) {
  UnixListener::Options options = Greeter();
  options.path = root_.path() + "/" + std::string(100, 'x');
  absl::Status status = UnixListener::Start(std::move(options)).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), ::testing::AllOf(HasSubstr("characters"), HasSubstr("107")));
  EXPECT_TRUE(absl::IsInvalidArgument(ConnectUnix("").status()));
  EXPECT_TRUE(absl::IsNotFound(ConnectUnix(path_).status()));
  std::ofstream(path_) << "precious";
  EXPECT_TRUE(absl::IsFailedPrecondition(UnixListener::Start(Greeter()).status()));
  EXPECT_TRUE(Exists(path_));
  EXPECT_FALSE(Exists(path_ + ".lock"));
  options = Greeter();
  options.path = root_.path() + "/none/s.sock";
  EXPECT_TRUE(absl::IsNotFound(UnixListener::Start(std::move(options)).status()));
}

}  // namespace
}  // namespace sherd::runtime

// Processes for tests: forked functions that are killed and reaped at the end of the test.
//
//   TestProcess p([] { ...; return 0; });   // runs in a child; must not use gtest's assertions
//   p.Kill();
//   EXPECT_EQ(p.Join(), 0);
#ifndef SHERD_RUNTIME_TEST_PROCESS_H_
#define SHERD_RUNTIME_TEST_PROCESS_H_

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "gtest/gtest.h"
#include "runtime/process_identity.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

class TestProcess {
 public:
  explicit TestProcess(const std::function<int()>& body) {
    pid_ = ::fork();
    if (pid_ == 0) ::_exit(body());
    identity_ = Identify(pid_).value();
  }
  TestProcess(const TestProcess&) = delete;
  TestProcess& operator=(const TestProcess&) = delete;
  ~TestProcess() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      Join();
    }
  }
  const ProcessIdentity& identity() const { return identity_; }
  // Leaves a zombie until Join().
  void Kill() { ::kill(pid_, SIGKILL); }
  // Waits for the end; the exit status, or minus the signal.
  int Join() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
  ProcessIdentity identity_;
};

// A pipe on which one side says that it got somewhere.
class TestSignal {
 public:
  TestSignal() {
    int fds[2];
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    read_.Reset(fds[0]);
    write_.Reset(fds[1]);
  }
  void Send() { EXPECT_EQ(::write(write_.get(), "x", 1), 1); }
  // False when every writer is gone.
  bool Receive() {
    char c;
    return ::read(read_.get(), &c, 1) == 1;
  }

 private:
  UniqueFd read_, write_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_TEST_PROCESS_H_

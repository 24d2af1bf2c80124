#include "client/rpc/listener.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/test_root.h"
#include "runtime/unique_fd.h"

namespace sherd::rpc {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(StoppedListeners, NamesTheStoppedProcessAndOnlyIt) {
  runtime::TestRoot root("/tmp");
  const std::string path = root.path() + "/s0.sock", endpoint = "unix:" + path;
  EXPECT_EQ(StoppedListeners({endpoint, "127.0.0.1:7"}), "") << "nobody is there";
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path.c_str());
    const bool listens = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                         ::listen(fd, 8) == 0 && ::write(ready[1], "x", 1) == 1;
    if (!listens) ::_exit(1);
    for (;;) ::pause();
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(StoppedListeners({endpoint}), "") << "it runs";
  ASSERT_EQ(::kill(child, SIGSTOP), 0);
  int status;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_THAT(StoppedListeners({"unix:/none", endpoint}),
              AllOf(HasSubstr("process " + std::to_string(child)), HasSubstr(endpoint),
                    HasSubstr("kill -CONT " + std::to_string(child))));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(StoppedListeners({endpoint}), "") << "it has ended";
}

}  // namespace
}  // namespace sherd::rpc

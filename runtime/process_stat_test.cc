#include "runtime/process_stat.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"
#include "runtime/process_identity.h"

namespace sherd::runtime {
namespace {

TEST(ProcessStat, OfAProcessThatRunsStopsAndEnds) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (;;) ::pause();
  }
  const absl::StatusOr<ProcessStat> stat = ReadProcessStat(child);
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->start_ticks, Identify(child)->start_ticks);
  EXPECT_FALSE(IsStopped(child, stat->start_ticks));
  ASSERT_EQ(::kill(child, SIGSTOP), 0);
  int status;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(IsStopped(child, stat->start_ticks));
  EXPECT_FALSE(IsStopped(child, stat->start_ticks + 1)) << "another process had this pid";
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_FALSE(IsStopped(child, stat->start_ticks));
  EXPECT_TRUE(absl::IsNotFound(ReadProcessStat(child).status()));
}

TEST(ProcessStat, OfThisOne) { EXPECT_EQ(ReadProcessStat(::getpid())->state, 'R'); }

}  // namespace
}  // namespace sherd::runtime

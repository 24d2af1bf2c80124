#include "client/cli/keeper.h"

#include <signal.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "runtime/job_dir.h"
#include "runtime/process_identity.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using runtime::JobDir;
using runtime::TestProcess;
using runtime::TestRoot;
using runtime::TestSignal;

bool Gone(const std::string& path) { return ::access(path.c_str(), F_OK) != 0; }

// Becomes true within seconds: what another process does cannot be waited for otherwise.
template <typename Condition>
bool Soon(Condition condition) {
  for (int i = 0; i < 2000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(5));
  return condition();
}

TEST(Keeper, TakesAwayWhatAKilledSupervisorLeaves) {
  TestRoot root;
  // A bystander in a group of its own.
  TestSignal grouped;
  TestProcess group([&] {
    ::setpgid(0, 0);
    grouped.Send();
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(grouped.Receive());
  TestSignal started;
  TestProcess supervisor([&] {
    absl::StatusOr<Keeper> keeper = Keeper::Start();
    absl::StatusOr<JobDir> dir = JobDir::Create(root.path(), "job");
    if (!keeper.ok() || !dir.ok()) return 1;
    keeper->GuardDirectory(dir->path());
    keeper->GuardGroup(group.identity().pid);
    started.Send();
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(started.Receive());
  ASSERT_EQ(JobDir::List(root.path())->size(), 1);
  EXPECT_TRUE(runtime::IsAlive(group.identity()));
  const std::string path = JobDir::List(root.path())->front().path;
  supervisor.Kill();
  EXPECT_TRUE(Soon([&] { return Gone(path); }));
  EXPECT_TRUE(Soon([&] { return !runtime::IsAlive(group.identity()); }));
}

TEST(Keeper, LeavesAllAloneWhenDismissed) {
  TestRoot root;
  TestSignal grouped;
  TestProcess group([&] {
    ::setpgid(0, 0);
    grouped.Send();
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(grouped.Receive());
  absl::StatusOr<JobDir> dir = JobDir::Create(root.path(), "job");
  ASSERT_TRUE(dir.ok()) << dir.status();
  absl::StatusOr<Keeper> keeper = Keeper::Start();
  ASSERT_TRUE(keeper.ok()) << keeper.status();
  keeper->GuardDirectory(dir->path());
  keeper->GuardGroup(group.identity().pid);
  keeper->Dismiss();
  keeper->Dismiss();
  EXPECT_FALSE(Gone(dir->path()));
  EXPECT_TRUE(runtime::IsAlive(group.identity()));
}

}  // namespace
}  // namespace sherd::cli

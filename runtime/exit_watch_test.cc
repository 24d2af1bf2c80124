// The conformance suite of ExitWatch, on the real one and on its twin; and tests of process identities.
#include "runtime/exit_watch.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <list>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/fake_exit_watch.h"
#include "runtime/mutex.h"
#include "runtime/test_process.h"

namespace sherd::runtime {
namespace {

// How the suite makes and ends processes of one implementation.
class World {
 public:
  virtual ~World() = default;
  virtual ExitWatch& watch() = 0;
  virtual ProcessIdentity Start() = 0;
  virtual void Kill(const ProcessIdentity& identity) = 0;
  // Called before the suite waits for a callback.
  virtual void Settle() = 0;
  virtual void DestroyWatch() = 0;
};

class RealWorld final : public World {
 public:
  ExitWatch& watch() override { return *watch_; }
  ProcessIdentity Start() override {
    processes_.emplace_back([] {
      ::pause();
      return 0;
    });
    return processes_.back().identity();
  }
  void Kill(const ProcessIdentity& identity) override { ::kill(identity.pid, SIGKILL); }
  void Settle() override {}
  void DestroyWatch() override { watch_.reset(); }

 private:
  std::list<TestProcess> processes_;
  std::unique_ptr<ExitWatch> watch_ = *MakeExitWatch();
};

class FakeWorld final : public World {
 public:
  ExitWatch& watch() override { return *watch_; }
  ProcessIdentity Start() override { return watch_->Start(); }
  void Kill(const ProcessIdentity& identity) override { watch_->Exit(identity); }
  void Settle() override { watch_->Deliver(); }
  void DestroyWatch() override { watch_.reset(); }

 private:
  std::unique_ptr<FakeExitWatch> watch_ = std::make_unique<FakeExitWatch>();
};

class ExitWatchConformance : public ::testing::TestWithParam<bool> {
 protected:
  ExitWatchConformance() {
    if (GetParam()) {
      world_ = std::make_unique<RealWorld>();
    } else {
      world_ = std::make_unique<FakeWorld>();
    }
  }
  void WaitFor(Notification& n) {
    world_->Settle();
    ASSERT_TRUE(n.WaitFor(absl::Seconds(60)));
  }
  std::unique_ptr<World> world_;
};

TEST_P(ExitWatchConformance, TellsTheRightDeathOnce) {
  const ProcessIdentity a = world_->Start(), b = world_->Start();
  Notification a_dead, b_dead;
  std::atomic<int> calls{0};
  ASSERT_TRUE(world_->watch()
                  .Watch(a,
                         [&](const ProcessIdentity& id) {
                           EXPECT_EQ(id, a);
                           ++calls;
                           a_dead.Notify();
                         })
                  .ok());
  ASSERT_TRUE(world_->watch()
                  .Watch(b,
                         [&](const ProcessIdentity& id) {
                           EXPECT_EQ(id, b);
                           ++calls;
                           b_dead.Notify();
                         })
                  .ok());
  world_->Kill(b);
  WaitFor(b_dead);
  EXPECT_FALSE(a_dead.HasBeenNotified());
  world_->Kill(a);
  WaitFor(a_dead);
  EXPECT_EQ(calls, 2);
}

TEST_P(ExitWatchConformance, ManyWatchersOfOneProcess) {
  const ProcessIdentity a = world_->Start();
  Notification dead[5];
  for (auto& n : dead)
    ASSERT_TRUE(world_->watch().Watch(a, [&n](const ProcessIdentity&) { n.Notify(); }).ok());
  world_->Kill(a);
  for (auto& n : dead) WaitFor(n);
}

TEST_P(ExitWatchConformance, AlreadyDead) {
  const ProcessIdentity a = world_->Start();
  Notification first, second;
  ASSERT_TRUE(world_->watch().Watch(a, [&](const ProcessIdentity&) { first.Notify(); }).ok());
  world_->Kill(a);
  WaitFor(first);
  ASSERT_TRUE(world_->watch().Watch(a, [&](const ProcessIdentity&) { second.Notify(); }).ok());
  WaitFor(second);
}

TEST_P(ExitWatchConformance, ReusedPidIsDead) {
  ProcessIdentity a = world_->Start();
  a.start_ticks += 1;  // the process that had this pid before
  Notification dead;
  ASSERT_TRUE(world_->watch().Watch(a, [&](const ProcessIdentity&) { dead.Notify(); }).ok());
  WaitFor(dead);
}

TEST_P(ExitWatchConformance, CancelledIsSilent) {
  const ProcessIdentity a = world_->Start();
  std::atomic<int> calls{0};
  auto id = world_->watch().Watch(a, [&](const ProcessIdentity&) { ++calls; });
  ASSERT_TRUE(id.ok());
  Notification last;
  ASSERT_TRUE(world_->watch().Watch(a, [&](const ProcessIdentity&) { last.Notify(); }).ok());
  world_->watch().Cancel(*id);
  world_->watch().Cancel(*id);
  world_->watch().Cancel(12345);
  world_->Kill(a);
  WaitFor(last);
  EXPECT_EQ(calls, 0);
}

TEST_P(ExitWatchConformance, CallbackMayWatchAndCancel) {
  const ProcessIdentity a = world_->Start();
  Notification done;
  std::atomic<ExitWatch::Id> own{0};
  auto id = world_->watch().Watch(a, [&](const ProcessIdentity& dead) {
    world_->watch().Cancel(own);
    EXPECT_TRUE(world_->watch().Watch(dead, [&](const ProcessIdentity&) { done.Notify(); }).ok());
  });
  ASSERT_TRUE(id.ok());
  own = *id;
  world_->Kill(a);
  WaitFor(done);
}

TEST_P(ExitWatchConformance, NothingAfterDestruction) {
  const ProcessIdentity a = world_->Start();
  std::atomic<int> calls{0};
  ASSERT_TRUE(world_->watch().Watch(a, [&](const ProcessIdentity&) { ++calls; }).ok());
  world_->DestroyWatch();
  EXPECT_EQ(calls, 0);
}

INSTANTIATE_TEST_SUITE_P(All, ExitWatchConformance, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Pidfd" : "Fake"; });

TEST(ExitWatch, SeesProcessesThatAreNotChildren) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  TestProcess parent([&] {
    ::signal(SIGCHLD, SIG_IGN);  // its child is reaped at once
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(fds[1]);
      ::pause();
    }
    if (::write(fds[1], &child, sizeof(child)) != sizeof(child)) return 1;
    ::pause();
    return 0;
  });
  pid_t grandchild = 0;
  ASSERT_EQ(::read(fds[0], &grandchild, sizeof(grandchild)), static_cast<ssize_t>(sizeof(grandchild)));
  auto watch = *MakeExitWatch();
  Notification dead;
  ASSERT_TRUE(watch->Watch(*Identify(grandchild), [&](const ProcessIdentity&) { dead.Notify(); }).ok());
  ::kill(grandchild, SIGKILL);
  EXPECT_TRUE(dead.WaitFor(absl::Seconds(60)));
  ::close(fds[0]);
  ::close(fds[1]);
}

TEST(ExitWatch, DetectionTime) {
  auto watch = *MakeExitWatch();
  std::vector<double> millis;
  for (int i = 0; i < 21; ++i) {
    TestProcess p([] {
      ::pause();
      return 0;
    });
    Notification dead;
    absl::Time seen;
    ASSERT_TRUE(watch
                    ->Watch(p.identity(),
                            [&](const ProcessIdentity&) {
                              seen = SteadyNow();
                              dead.Notify();
                            })
                    .ok());
    const absl::Time killed = SteadyNow();
    p.Kill();
    ASSERT_TRUE(dead.WaitFor(absl::Seconds(60)));
    millis.push_back(absl::ToDoubleMilliseconds(seen - killed));
  }
  std::sort(millis.begin(), millis.end());
  std::printf("exit detected after %.3f ms (median), %.3f ms (worst of %zu)\n", millis[millis.size() / 2],
              millis.back(), millis.size());
}

TEST(ProcessIdentity, TextAndBack) {
  const ProcessIdentity self = Self();
  EXPECT_EQ(self.pid, ::getpid());
  EXPECT_NE(self.start_ticks, 0u);
  EXPECT_EQ(*Identify(::getpid()), self);
  EXPECT_EQ(*ParseProcessIdentity(self.ToString()), self);
  for (const char* bad : {"", "@", "1", "1@", "@1", "0@1", "-5@1", "1@2@3", "1@x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseProcessIdentity(bad).status())) << bad;
  }
}

TEST(ProcessIdentity, ZombiesAndReapedAreDead) {
  std::optional<TestProcess> p;
  p.emplace([] {
    ::pause();
    return 0;
  });
  const ProcessIdentity id = p->identity();
  EXPECT_TRUE(IsAlive(id));
  EXPECT_FALSE(IsAlive({id.pid, id.start_ticks + 1}));
  EXPECT_TRUE(KillAndWait(id, SteadyNow() + absl::Seconds(60)).ok());
  EXPECT_FALSE(IsAlive(id)) << "a zombie";
  EXPECT_TRUE(KillAndWait(id, SteadyNow()).ok());
  EXPECT_EQ(p->Join(), -SIGKILL);
  EXPECT_FALSE(IsAlive(id));
  EXPECT_TRUE(absl::IsNotFound(Identify(id.pid).status()));
  EXPECT_TRUE(KillAndWait(id, SteadyNow()).ok());
}

TEST(ProcessIdentity, KillsStoppedButNeverAnother) {
  TestProcess p([] {
    ::pause();
    return 0;
  });
  // Same pid, another start: somebody else, who must live.
  EXPECT_TRUE(KillAndWait({p.identity().pid, p.identity().start_ticks + 1}, SteadyNow()).ok());
  EXPECT_TRUE(IsAlive(p.identity()));
  ::kill(p.identity().pid, SIGSTOP);
  EXPECT_TRUE(IsAlive(p.identity()));
  EXPECT_TRUE(KillAndWait(p.identity(), SteadyNow() + absl::Seconds(60)).ok());
  EXPECT_FALSE(IsAlive({0, 0}));
}

}  // namespace
}  // namespace sherd::runtime

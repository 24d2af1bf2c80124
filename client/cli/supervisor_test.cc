#include "client/cli/supervisor.h"

#include <signal.h>

#include <map>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

using runtime::ExitStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr ExitStatus kOk{false, 0};
ExitStatus Exit(int code) { return {false, code}; }
ExitStatus Killed(int signal = SIGKILL) { return {true, signal}; }
Member T(int rank) { return {Member::kTrainer, rank}; }
Member S(int index) { return {Member::kServer, index}; }

// Actions as lines.
std::vector<std::string> Lines(const Actions& actions) {
  std::vector<std::string> lines;
  for (const Action& a : actions) lines.push_back(a.ToString());
  return lines;
}

class SupervisorTest : public ::testing::Test {
 protected:
  Supervisor Running(int trainers, int servers, int restarts = 3) {
    Supervisor::Options options;
    options.trainers = trainers;
    options.servers = servers;
    options.restarts = restarts;
    Supervisor s(options);
    s.Start(now_);
    std::vector<int> live;
    for (int i = 0; i < servers; ++i) live.push_back(i);
    EXPECT_EQ(s.ClusterSeen(live, servers, now_).size(), trainers);
    return s;
  }
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(SupervisorTest, ServersThenTrainersThenTheEnd) {
  Supervisor s({2, 2});
  EXPECT_THAT(Lines(s.Start(now_)), ElementsAre("spawn server s0", "spawn server s1"));
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 2, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.ClusterSeen({0, 1}, 2, now_)), ElementsAre("spawn trainer 0", "spawn trainer 1"));
  EXPECT_THAT(Lines(s.ClusterSeen({0, 1}, 2, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(T(0), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(T(1), kOk, now_)), ElementsAre("signal 15 server s0", "signal 15 server s1"));
  EXPECT_THAT(Lines(s.Exited(S(0), kOk, now_)), IsEmpty());
  EXPECT_FALSE(s.done());
  s.Exited(S(1), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 0);
}

TEST_F(SupervisorTest, OfSeveralHostsServersStayUntilNobodyNeedsThem) {
  Supervisor::Options options;
  options.several_hosts = true;
  options.start_limit = absl::InfiniteDuration();
  Supervisor s(options);
  s.Start(now_);
  EXPECT_EQ(s.next_tick(), absl::InfiniteFuture()) << "other hosts may come late";
  s.ClusterSeen({0}, 0, now_);
  EXPECT_THAT(Lines(s.Exited(T(0), kOk, now_)), IsEmpty());
  EXPECT_FALSE(s.done());
  EXPECT_THAT(Lines(s.HostLost("host 1 has left", now_)), IsEmpty()) << "this one has finished";
  EXPECT_THAT(Lines(s.MayEndServers(now_)), ElementsAre("signal 15 server s0"));
  s.Exited(S(0), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 0);
}

TEST_F(SupervisorTest, OfSeveralHostsServersStayAMinuteWhenAllHaveFinished) {
  for (const bool early : {false, true}) {
    Supervisor::Options options;
    options.several_hosts = true;
    Supervisor s(options);
    s.Start(now_);
    s.ClusterSeen({0}, 0, now_);
    if (early) s.AllFinished(now_);
    s.Exited(T(0), kOk, now_);
    if (!early) {
      EXPECT_EQ(s.next_tick(), now_ + options.hosts_grace);
      s.AllFinished(now_);
    }
    s.AllFinished(now_ + absl::Seconds(30));
    EXPECT_EQ(s.next_tick(), now_ + options.leave_grace) << early;
    EXPECT_THAT(Lines(s.Tick(now_ + options.leave_grace)), ElementsAre("signal 15 server s0"));
  }
}

TEST_F(SupervisorTest, AHostThatLeavesBeforeItsEndEndsTheJob) {
  Supervisor::Options options;
  options.several_hosts = true;
  Supervisor s(options);
  s.Start(now_);
  s.ClusterSeen({0}, 0, now_);
  EXPECT_THAT(Lines(s.HostLost("host 1 has left", now_)),
              ElementsAre("say host 1 has left", "signal 15 trainer 0"));
  EXPECT_THAT(Lines(s.Exited(T(0), Killed(SIGTERM), now_)), ElementsAre("signal 15 server s0"));
  s.Exited(S(0), kOk, now_);
  EXPECT_EQ(s.exit_status(), 1);
}

TEST_F(SupervisorTest, AKilledTrainerIsStartedAgainWithDoublingWaits) {
  Supervisor s = Running(2, 1, 2);
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)),
              ElementsAre("say trainer 1: killed by signal 9 (KILL); restart 1 of 2 in 100ms"));
  EXPECT_EQ(s.next_tick(), now_ + absl::Milliseconds(100));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Milliseconds(99))), IsEmpty());
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Milliseconds(100))), ElementsAre("spawn trainer 1"));
  EXPECT_EQ(s.next_tick(), absl::InfiniteFuture());
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(SIGSEGV), now_)),
              ElementsAre(HasSubstr("restart 2 of 2 in 200ms")));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), ElementsAre("spawn trainer 1"));
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)),
              ElementsAre("say trainer 1: killed by signal 9 (KILL) after 2 restarts; the job ends",
                          "signal 15 trainer 0"));
  s.Exited(T(0), Killed(SIGTERM), now_);
  s.Exited(S(0), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 128 + SIGKILL);
}

TEST_F(SupervisorTest, WhoStandsStillIsKilledOnceAfterTheTimeoutAndStartedAgain) {
  Supervisor::Options options;
  options.trainers = 2, options.servers = 1, options.restarts = 1;
  options.stall_timeout = absl::Seconds(30);
  Supervisor s(options);
  s.Start(now_);
  EXPECT_THAT(Lines(s.Stalled(S(0), absl::Hours(1), now_)), IsEmpty()) << "it starts";
  s.ClusterSeen({0}, 1, now_);
  EXPECT_THAT(Lines(s.Stalled(T(1), absl::Seconds(29), now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Stalled(T(1), absl::Seconds(31), now_)),
              ElementsAre("say trainer 1: lives but has not moved for 31 s while others wait; killing it "
                          "(--stall-timeout 30s)",
                          "signal 9 trainer 1"));
  EXPECT_THAT(Lines(s.Stalled(T(1), absl::Seconds(32), now_)), IsEmpty()) << "killed already";
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)), ElementsAre(HasSubstr("restart 1 of 1 in 100ms")));
  EXPECT_THAT(Lines(s.Stalled(T(1), absl::Seconds(33), now_)), IsEmpty()) << "does not run";
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), ElementsAre("spawn trainer 1"));
  EXPECT_THAT(Lines(s.Stalled(S(0), absl::Seconds(30), now_)),
              ElementsAre(HasSubstr("server s0: lives but has not moved or answered for 30 s"),
                          "signal 9 server s0"));
  EXPECT_THAT(Lines(s.Stalled(T(7), absl::Seconds(30), now_)), IsEmpty()) << "none of this host's";
  s.Interrupted(SIGINT, now_);
  EXPECT_THAT(Lines(s.Stalled(T(0), absl::Seconds(30), now_)), IsEmpty()) << "the job ends anyway";
}

TEST_F(SupervisorTest, WithoutATimeoutNobodyIsKilledForStandingStill) {
  Supervisor s = Running(1, 1);
  EXPECT_THAT(Lines(s.Stalled(T(0), absl::Hours(1000), now_)), IsEmpty());
}

TEST_F(SupervisorTest, ATrainerThatFailsEndsTheJobWithItsStatus) {
  Supervisor s = Running(3, 1);
  EXPECT_THAT(
      Lines(s.Exited(T(2), Exit(7), now_)),
      ElementsAre("say trainer 2: exit 7; the job ends", "signal 15 trainer 0", "signal 15 trainer 1"));
  EXPECT_THAT(Lines(s.Exited(T(0), Exit(9), now_)), IsEmpty()) << "the first one counts";
  EXPECT_EQ(s.next_tick(), now_ + absl::Seconds(5));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(5))),
              ElementsAre(HasSubstr("killing"), "signal 9 trainer 1"));
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)), ElementsAre("signal 15 server s0"));
  s.Exited(S(0), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 7);
}

TEST_F(SupervisorTest, WithALeastNumberOfTrainersTheJobGoesOnWithFewer) {
  Supervisor::Options options;
  options.trainers = 3, options.servers = 1, options.restarts = 0, options.min_trainers = 2;
  Supervisor s(options);
  s.Start(now_);
  s.ClusterSeen({0}, 1, now_);
  EXPECT_THAT(Lines(s.Exited(T(0), Killed(), now_)),
              ElementsAre(HasSubstr("goes on with 2 trainers"), "resize 2"));
  EXPECT_THAT(Lines(s.TrainersSeen(3, 2, now_)), IsEmpty());
  // Rank 2 leaves; in its stead rank 0 begins anew.
  EXPECT_THAT(Lines(s.TrainersSeen(2, 2, now_)), ElementsAre("spawn trainer 0"));
  EXPECT_THAT(Lines(s.Exited(T(2), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(2, 2, now_)), IsEmpty());
  // Fewer than two there must not be.
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)),
              ElementsAre(HasSubstr("after 0 restarts; the job ends"), "signal 15 trainer 0"));
}

TEST_F(SupervisorTest, WhereTheJobCannotGoOnWithFewerTrainersItEnds) {
  Supervisor::Options options;
  options.trainers = 2, options.servers = 1, options.restarts = 0, options.min_trainers = 1;
  Supervisor s(options);
  s.Start(now_);
  s.ClusterSeen({0}, 1, now_);
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)),
              ElementsAre(HasSubstr("goes on with 1 trainer"), "resize 1"));
  EXPECT_THAT(Lines(s.ResizeFailed("no", now_)), ElementsAre(HasSubstr("no"), "signal 15 trainer 0"));
  s.Exited(T(0), Killed(SIGTERM), now_);
  s.Exited(S(0), kOk, now_);
  EXPECT_EQ(s.exit_status(), 1);
}

TEST_F(SupervisorTest, TrainersAreStartedForAResizeAndThoseLetGoAreNotMissed) {
  Supervisor s = Running(2, 1, 1);
  EXPECT_THAT(Lines(s.TrainersSeen(2, 2, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(2, 4, now_)), ElementsAre("spawn trainer 2", "spawn trainer 3"));
  EXPECT_EQ(s.world_size(), 4);
  EXPECT_THAT(Lines(s.TrainersSeen(2, 4, now_)), IsEmpty());
  // One that was to join is started again like any, and when that is over only the resize fails.
  EXPECT_THAT(Lines(s.Exited(T(3), Killed(), now_)), ElementsAre(HasSubstr("restart 1 of 1")));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), ElementsAre("spawn trainer 3"));
  EXPECT_THAT(Lines(s.Exited(T(3), Killed(), now_)),
              ElementsAre(HasSubstr("the job goes on without it: `sherd resize --trainers 2`")));
  EXPECT_THAT(Lines(s.TrainersSeen(2, 4, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(2, 2, now_)), IsEmpty()) << "taken back";
  EXPECT_THAT(Lines(s.Exited(T(2), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(2, 3, now_)), ElementsAre("spawn trainer 2"));
  EXPECT_THAT(Lines(s.TrainersSeen(3, 3, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(3, 1, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.TrainersSeen(1, 1, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(T(1), Killed(), now_)), IsEmpty()) << "it was let go already";
  // The next resize came before the other had exited.
  EXPECT_THAT(Lines(s.TrainersSeen(1, 3, now_)), ElementsAre("spawn trainer 1"));
  EXPECT_THAT(Lines(s.Exited(T(2), kOk, now_)), ElementsAre("spawn trainer 2"));
  s.TrainersSeen(3, 3, now_);
  EXPECT_THAT(Lines(s.Exited(T(2), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(T(1), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(T(0), kOk, now_)), ElementsAre("signal 15 server s0"));
  s.Exited(S(0), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 0);
}

TEST_F(SupervisorTest, ATrainerThatWaitsForItsRestartIsNotStartedOnceTheJobEnds) {
  Supervisor s = Running(2, 1);
  s.Exited(T(0), Killed(), now_);
  EXPECT_THAT(Lines(s.Exited(T(1), Exit(1), now_)),
              ElementsAre(HasSubstr("trainer 1: exit 1"), "signal 15 server s0"));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), IsEmpty());
}

TEST_F(SupervisorTest, ServersAreStartedAgainOnceTheyWereUp) {
  Supervisor s = Running(1, 2, 1);
  EXPECT_THAT(Lines(s.Exited(S(1), Exit(1), now_)),
              ElementsAre("say server s1: exit 1; restart 1 of 1 in 100ms"));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), ElementsAre("spawn server s1"));
  s.ClusterSeen({0, 1}, 2, now_);
  EXPECT_THAT(Lines(s.Exited(S(1), Exit(1), now_)),
              ElementsAre("log server s1", HasSubstr("after 1 restarts"), "signal 15 trainer 0"));
  EXPECT_EQ(s.exit_status(), 1);
}

TEST_F(SupervisorTest, AServerThatCannotStartEndsTheJob) {
  Supervisor s({1, 2});
  s.Start(now_);
  EXPECT_THAT(Lines(s.Exited(S(0), Exit(1), now_)),
              ElementsAre("log server s0", "say server s0: exit 1; the job ends", "signal 15 server s1"));
  s.Exited(S(1), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 1);
}

TEST_F(SupervisorTest, AServerKilledWhileItStartsIsStartedAgain) {
  Supervisor s({1, 1});
  s.Start(now_);
  EXPECT_THAT(Lines(s.Exited(S(0), Killed(), now_)), ElementsAre(HasSubstr("restart 1 of 3")));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(1))), ElementsAre("spawn server s0"));
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 1, now_)), ElementsAre("spawn trainer 0"));
}

TEST_F(SupervisorTest, SilentServersEndTheJob) {
  Supervisor s({1, 2});
  s.Start(now_);
  s.ClusterSeen({0}, 2, now_);
  EXPECT_EQ(s.next_tick(), now_ + absl::Seconds(60));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(60))),
              ElementsAre("log server s1", "say servers did not come up within 1m: s1", "signal 15 server s0",
                          "signal 15 server s1"));
  EXPECT_EQ(s.next_tick(), now_ + absl::Seconds(70));
  EXPECT_THAT(Lines(s.Tick(now_ + absl::Seconds(70))),
              ElementsAre(HasSubstr("killing"), "signal 9 server s0", "signal 9 server s1"));
}

TEST_F(SupervisorTest, ResizeStartsServersAndLetsThemGo) {
  Supervisor s = Running(1, 1);
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 3, now_)), ElementsAre("spawn server s1", "spawn server s2"));
  EXPECT_THAT(Lines(s.ClusterSeen({0, 1, 2}, 3, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.ClusterSeen({0, 1, 2}, 1, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(S(1), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Exited(S(2), kOk, now_)), IsEmpty());
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 2, now_)), ElementsAre("spawn server s1")) << "a free number";
}

TEST_F(SupervisorTest, AServerThatAResizeAddsMayFailAlone) {
  Supervisor s = Running(1, 1, 2);
  s.ClusterSeen({0}, 2, now_);
  EXPECT_THAT(Lines(s.Exited(S(1), Exit(1), now_)),
              ElementsAre("log server s1", "say server s1: exit 1; the job goes on without it"));
  // Still asked for: tried again, but not for ever.
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 2, now_)), ElementsAre("spawn server s1"));
  s.Exited(S(1), Exit(1), now_);
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 2, now_)), ElementsAre("spawn server s1"));
  s.Exited(S(1), Exit(1), now_);
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 2, now_)), IsEmpty());
}

TEST_F(SupervisorTest, TheLastServerIsStartedAgainEvenAfterAnOrderlyExit) {
  Supervisor s = Running(1, 1);
  EXPECT_THAT(Lines(s.Exited(S(0), kOk, now_)), ElementsAre(HasSubstr("server s0: exit 0; restart 1 of 3")));
}

TEST_F(SupervisorTest, CtrlCEndsAndTheSecondKills) {
  Supervisor s = Running(2, 1);
  EXPECT_THAT(Lines(s.Interrupted(SIGINT, now_)),
              ElementsAre("say stopping (Ctrl-C again kills)", "signal 15 trainer 0", "signal 15 trainer 1"));
  EXPECT_THAT(Lines(s.Exited(T(0), Killed(SIGTERM), now_)), IsEmpty());
  EXPECT_THAT(Lines(s.Interrupted(SIGINT, now_)),
              ElementsAre("say killing all", "signal 9 trainer 1", "signal 9 server s0"));
  s.Exited(S(0), Killed(), now_);
  EXPECT_FALSE(s.done());
  s.Exited(T(1), Killed(), now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 128 + SIGINT);
}

TEST_F(SupervisorTest, InterruptedBeforeTheTrainersStart) {
  Supervisor s({1, 1});
  s.Start(now_);
  EXPECT_THAT(Lines(s.Interrupted(SIGTERM, now_)), ElementsAre("say stopping", "signal 15 server s0"));
  EXPECT_THAT(Lines(s.ClusterSeen({0}, 1, now_)), IsEmpty());
  s.Exited(S(0), kOk, now_);
  EXPECT_TRUE(s.done());
  EXPECT_EQ(s.exit_status(), 128 + SIGTERM);
}

TEST_F(SupervisorTest, AProgramThatDoesNotStartEndsTheJob) {
  Supervisor s = Running(2, 1);
  EXPECT_THAT(Lines(s.SpawnFailed(T(1), "no program x", now_)),
              ElementsAre("say trainer 1: no program x; the job ends", "signal 15 trainer 0"));
  EXPECT_EQ(s.exit_status(), 1);
}

// Whatever happens, nobody is started twice or signalled while it does not run, and the end comes.
TEST_F(SupervisorTest, RandomHistoriesEndWithNobodyLeft) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    SCOPED_TRACE(seed);
    Supervisor s({1 + static_cast<int>(random() % 3), 1 + static_cast<int>(random() % 3), 2});
    std::set<Member> running;
    absl::Time now = now_;
    const auto act = [&](const Actions& actions) {
      for (const Action& a : actions) {
        if (a.kind == Action::kSpawn) {
          EXPECT_TRUE(running.insert(a.member).second) << a;
        }
        if (a.kind == Action::kSignal) {
          EXPECT_EQ(running.count(a.member), 1) << a;
        }
      }
    };
    act(s.Start(now));
    for (int event = 0; event < 2000 && !s.done(); ++event) {
      now += absl::Milliseconds(random() % 100);
      std::vector<int> live;
      for (const Member& m : running) {
        if (m.kind == Member::kServer) live.push_back(m.index);
      }
      const uint32_t choice = random() % 12;
      if (choice < 3) {
        act(s.ClusterSeen(live, 1 + random() % 4, now));
      } else if (choice < 6 && !running.empty()) {
        auto it = running.begin();
        std::advance(it, random() % running.size());
        const Member member = *it;
        running.erase(it);
        const ExitStatus statuses[] = {kOk, Exit(1), Killed(), Killed(SIGTERM)};
        act(s.Exited(member, statuses[random() % 4], now));
      } else if (choice == 6 && event > 50) {
        act(s.Interrupted(SIGINT, now));
      } else {
        act(s.Tick(now));
      }
    }
    EXPECT_TRUE(s.done());
    EXPECT_THAT(running, IsEmpty());
    EXPECT_EQ(s.next_tick(), absl::InfiniteFuture());
  }
}

}  // namespace
}  // namespace sherd::cli

#include "runtime/doorbell.h"

#include <sched.h>
#include <unistd.h>

#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/segment.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);  // a lost ring shows as this time-out

TEST(Doorbell, TicketBeforeRing) {
  DoorbellWord bell;
  const uint32_t ticket = bell.Listen();
  EXPECT_EQ(bell.Wait(ticket, absl::ZeroDuration(), SpinPolicy::None()), WaitResult::kTimeout);
  EXPECT_EQ(bell.Wait(ticket, absl::Milliseconds(5), SpinPolicy::None()), WaitResult::kTimeout);
  EXPECT_EQ(bell.Wait(ticket, absl::Milliseconds(5), SpinPolicy::Bounded(absl::Seconds(9))),
            WaitResult::kTimeout);
  bell.Ring();
  EXPECT_EQ(bell.Wait(ticket, absl::InfiniteDuration(), SpinPolicy::None()), WaitResult::kRung);
  EXPECT_EQ(bell.Wait(bell.Listen(), absl::Milliseconds(1), SpinPolicy::None()), WaitResult::kTimeout);
  EXPECT_EQ(bell.waiters(), 0u);
}

TEST(Doorbell, NoSystemCallWithoutWaiters) {
  DoorbellWord bell;
  const DoorbellCounters before = ReadDoorbellCounters();
  for (int i = 0; i < 10; ++i) bell.Ring();
  const DoorbellCounters after = ReadDoorbellCounters();
  EXPECT_EQ(after.rings - before.rings, 10u);
  EXPECT_EQ(after.ring_syscalls, before.ring_syscalls);
}

TEST(Doorbell, PolicyKnowsOversubscription) {
  EXPECT_GT(SpinPolicy::ForHost(2, 2).limit, absl::ZeroDuration());
  EXPECT_EQ(SpinPolicy::ForHost(3, 2).limit, absl::ZeroDuration());
  EXPECT_GE(UsableCores(), 1);
}

TEST(Doorbell, WakesASleeper) {
  DoorbellWord bell;
  const DoorbellCounters before = ReadDoorbellCounters();
  const uint32_t ticket = bell.Listen();
  std::thread waiter([&] { EXPECT_EQ(bell.Wait(ticket, kLong, SpinPolicy::None()), WaitResult::kRung); });
  while (bell.waiters() == 0) ::sched_yield();
  bell.Ring();
  waiter.join();
  EXPECT_EQ(ReadDoorbellCounters().ring_syscalls - before.ring_syscalls, 1u);
}

struct Shared {
  DoorbellWord to_b, to_a;
  std::atomic<uint64_t> ball{0};
  std::atomic<uint32_t> seed{0};
};

// Plays ball: side 0 makes odd numbers, side 1 even ones; each waits for the other's. False on a lost ring.
bool PingPong(Shared* s, int side, uint64_t rounds, SpinPolicy spin) {
  DoorbellWord& mine = side == 0 ? s->to_a : s->to_b;
  DoorbellWord& theirs = side == 0 ? s->to_b : s->to_a;
  std::minstd_rand random(s->seed.load() + side);
  for (uint64_t i = 0; i < rounds; ++i) {
    const uint64_t await = 2 * i + side;
    for (;;) {
      const uint32_t ticket = mine.Listen();
      if (s->ball.load(std::memory_order_relaxed) >= await) break;
      // Sometimes lets the other side come in between look and wait.
      if (random() % 8 == 0) ::sched_yield();
      if (mine.Wait(ticket, kLong, spin) == WaitResult::kTimeout) return false;
    }
    s->ball.store(await + 1, std::memory_order_relaxed);  // the bell publishes it
    theirs.Ring();
  }
  return true;
}

TEST(DoorbellStress, Threads) {
  for (const SpinPolicy spin : {SpinPolicy::None(), SpinPolicy::Bounded(absl::Microseconds(20))}) {
    Shared s;
    s.seed = std::random_device{}();
    std::printf("seed %u\n", s.seed.load());
    bool ok = false;
    std::thread b([&] { ok = PingPong(&s, 1, 20000, spin); });
    EXPECT_TRUE(PingPong(&s, 0, 20000, spin));
    b.join();
    EXPECT_TRUE(ok);
    EXPECT_EQ(s.ball, 40000u);
  }
}

TEST(DoorbellStress, Processes) {
  TestRoot root("/dev/shm");
  JobDir dir = *JobDir::Create(root.path(), "bell");
  Segment segment = *Segment::Create(dir, "control", SegmentKind::kControl, sizeof(Shared));
  auto* s = segment.as<Shared>();
  s->seed = std::random_device{}();
  std::printf("seed %u\n", s->seed.load());
  TestProcess other([&] {
    Segment mine = *Segment::Open(dir, "control", Segment::Access::kReadWrite, SegmentKind::kControl);
    return PingPong(mine.as<Shared>(), 1, 20000, SpinPolicy::None()) ? 0 : 1;
  });
  EXPECT_TRUE(PingPong(s, 0, 20000, SpinPolicy::None()));
  EXPECT_EQ(other.Join(), 0);
  EXPECT_EQ(s->to_a.waiters(), 0u);
  EXPECT_EQ(s->to_b.waiters(), 0u);
}

// Many ringers, many waiters: every waiter sees the end.
TEST(DoorbellStress, ManyToMany) {
  DoorbellWord bell;
  std::atomic<int> count{0};
  std::vector<std::thread> threads;
  constexpr int kRingers = 3, kRings = 5000;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (;;) {
        const uint32_t ticket = bell.Listen();
        if (count.load(std::memory_order_relaxed) == kRingers * kRings) return;
        ASSERT_EQ(bell.Wait(ticket, kLong, SpinPolicy::None()), WaitResult::kRung);
      }
    });
  }
  for (int t = 0; t < kRingers; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRings; ++i) {
        count.fetch_add(1, std::memory_order_relaxed);
        bell.Ring();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(bell.waiters(), 0u);
}

TEST(Doorbell, KilledWaiterDoesNoHarm) {
  TestRoot root("/dev/shm");
  JobDir dir = *JobDir::Create(root.path(), "bell");
  Segment segment = *Segment::Create(dir, "control", SegmentKind::kControl, sizeof(Shared));
  auto* s = segment.as<Shared>();
  TestProcess victim([&] {
    Segment mine = *Segment::Open(dir, "control", Segment::Access::kReadWrite, SegmentKind::kControl);
    DoorbellWord& bell = mine.as<Shared>()->to_b;
    (void)bell.Wait(bell.Listen(), absl::InfiniteDuration(), SpinPolicy::None());
    return 0;
  });
  while (s->to_b.waiters() == 0) ::sched_yield();
  victim.Kill();
  EXPECT_EQ(victim.Join(), -SIGKILL);
  EXPECT_EQ(s->to_b.waiters(), 1u);
  // Its stale count costs system calls and nothing else: a game on the same doorbells still works.
  const DoorbellCounters before = ReadDoorbellCounters();
  s->to_b.Ring();
  EXPECT_EQ(ReadDoorbellCounters().ring_syscalls - before.ring_syscalls, 1u);
  std::thread b([&] { EXPECT_TRUE(PingPong(s, 1, 2000, SpinPolicy::None())); });
  EXPECT_TRUE(PingPong(s, 0, 2000, SpinPolicy::None()));
  b.join();
  EXPECT_EQ(s->to_b.waiters(), 1u);
}

}  // namespace
}  // namespace sherd::runtime

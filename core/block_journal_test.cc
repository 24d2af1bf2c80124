#include "core/block_journal.h"

#include <array>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

struct Died {};

// Shared memory of one worker with two blocks of three elements and their stamps, and two undo slots.
struct Memory {
  std::array<std::array<int, 3>, 2> block{{{10, 20, 30}, {40, 50, 60}}};
  std::array<std::atomic<uint64_t>, 2> stamp{};
  std::array<JournalSlot, 2> slot{};
  std::array<std::array<int, 3>, 2> undo{};
};

// A process that dies at the `ticks`-th instant between two of its stores (never, if negative).
class Process {
 public:
  Process(Memory& m, int ticks) : m_(m), ticks_(ticks) {}

  void Tick() {
    if (ticks_ >= 0 && ticks_-- == 0) throw Died();
  }
  // Puts back what a dead predecessor left half done; its own death included.
  void Recover() {
    for (size_t s = 0; s < m_.slot.size(); ++s) {
      RecoverSlot(
          m_.slot[s], [&](int64_t b) { return m_.stamp[b].load(); },
          [&](int64_t b) { Copy(m_.undo[s], m_.block[b]); });
      Tick();
    }
  }
  // Brings both blocks to `mark`: every element grows by 1.
  void Work(Mark mark) {
    size_t s = 0;
    for (int64_t b = 0; b < 2; ++b) {
      if (Mark(m_.stamp[b].load()) >= mark) continue;
      JournaledMutate(
          m_.slot[s], m_.stamp[b], mark, b, [&] { Copy(m_.block[b], m_.undo[s]); },
          [&] {
            for (int& x : m_.block[b]) {
              ++x;
              Tick();
            }
          },
          [&] { Tick(); });
      Tick();
      s = 1 - s;
    }
  }

 private:
  void Copy(const std::array<int, 3>& from, std::array<int, 3>& to) {
    for (size_t i = 0; i < from.size(); ++i) {
      to[i] = from[i];
      Tick();
    }
  }
  Memory& m_;
  int ticks_;
};

// Runs `work` in a process that dies at `ticks`; true if it lived.
template <typename F>
bool Lives(Memory& m, int ticks, F work) {
  Process p(m, ticks);
  try {
    work(p);
  } catch (const Died&) {
    return false;
  }
  return true;
}

constexpr Mark kFirst = Mark::Of({Step(1), 0}), kSecond = Mark::Of({Step(2), 0});

void ExpectGrownBy(const Memory& m, int n) {
  for (int b = 0; b < 2; ++b) {
    for (int i = 0; i < 3; ++i) EXPECT_EQ(m.block[b][i], 10 * (3 * b + i + 1) + n);
  }
}

TEST(BlockJournalTest, WithoutDeath) {
  Memory m;
  Process p(m, -1);
  p.Work(kFirst);
  p.Work(kFirst);
  ExpectGrownBy(m, 1);
  p.Recover();
  ExpectGrownBy(m, 1);
  p.Work(kSecond);
  ExpectGrownBy(m, 2);
  EXPECT_EQ(m.stamp[1].load(), kSecond.word());
}

// The second step dies at every instant, its successor at every instant of recovery and redoing, and the
// third finishes: each element has grown once for each step.
TEST(BlockJournalTest, DeathAtEveryTickOfAStepAndOfItsRecovery) {
  int deaths = 0;
  for (int first = 0;; ++first) {
    bool first_lives = false;
    for (int second = 0;; ++second) {
      Memory m;
      Process(m, -1).Work(kFirst);
      first_lives = Lives(m, first, [](Process& p) { p.Work(kSecond); });
      const bool second_lives = Lives(m, second, [](Process& p) {
        p.Recover();
        p.Work(kSecond);
      });
      Process last(m, -1);
      last.Recover();
      for (const JournalSlot& s : m.slot) ASSERT_EQ(s.block_plus_1.load(), 0u);
      last.Work(kSecond);
      ExpectGrownBy(m, 2);
      ASSERT_FALSE(testing::Test::HasFailure()) << "deaths at ticks " << first << " and " << second;
      if (second_lives) break;
      ++deaths;
    }
    if (first_lives) break;
  }
  EXPECT_GT(deaths, 200);
}

}  // namespace
}  // namespace sherd

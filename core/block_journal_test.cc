#include "core/block_journal.h"

#include <algorithm>
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

// Whether a process works in two passes over a block or in one.
enum class How { kMutate, kPass };

// A process that dies at the `ticks`-th instant between two of its stores (never, if negative).
class Process {
 public:
  Process(Memory& m, int ticks, How how) : m_(m), ticks_(ticks), how_(how) {}

  void Tick() {
    if (ticks_ >= 0 && ticks_-- == 0) throw Died();
  }
  // Puts back what a dead predecessor left half done; its own death included.
  void Recover() {
    for (size_t s = 0; s < m_.slot.size(); ++s) {
      RecoverSlot(
          m_.slot[s], [&](int64_t b) { return m_.stamp[b].load(); },
          [&](int64_t b, uint64_t saved) {
            for (size_t i = 0; i < std::min<uint64_t>(saved, 3); ++i) {
              m_.block[b][i] = m_.undo[s][i];
              Tick();
            }
          });
      Tick();
    }
  }
  // Brings both blocks to `mark`: every element grows by 1.
  void Work(Mark mark) {
    size_t s = 0;
    for (int64_t b = 0; b < 2; ++b) {
      if (Mark(m_.stamp[b].load()) >= mark) continue;
      if (how_ == How::kMutate) {
        JournaledMutate(
            m_.slot[s], m_.stamp[b], mark, b, [&] { Copy(m_.block[b], m_.undo[s]); },
            [&] {
              for (int& x : m_.block[b]) {
                ++x;
                Tick();
              }
            },
            [&] { Tick(); });
      } else {
        JournaledPass(
            m_.slot[s], m_.stamp[b], mark, b, [&] { Pass(s, m_.block[b]); }, [&] { Tick(); });
      }
      Tick();
      s = 1 - s;
    }
  }

 private:
  // One element at a time.
  void Pass(size_t s, std::array<int, 3>& block) {
    for (size_t i = 0; i < block.size(); ++i) {
      m_.undo[s][i] = block[i];
      Tick();
      m_.slot[s].saved = i + 1;
      Tick();
      ++block[i];
      Tick();
    }
  }
  void Copy(const std::array<int, 3>& from, std::array<int, 3>& to) {
    for (size_t i = 0; i < from.size(); ++i) {
      to[i] = from[i];
      Tick();
    }
  }
  Memory& m_;
  int ticks_;
  const How how_;
};

// Runs `work` in a process that dies at `ticks`; true if it lived.
template <typename F>
bool Lives(Memory& m, int ticks, How how, F work) {
  Process p(m, ticks, how);
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

class BlockJournalTest : public testing::TestWithParam<How> {};

TEST_P(BlockJournalTest, WithoutDeath) {
  Memory m;
  Process p(m, -1, GetParam());
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
TEST_P(BlockJournalTest, DeathAtEveryTickOfAStepAndOfItsRecovery) {
  const How how = GetParam();
  int deaths = 0;
  for (int first = 0;; ++first) {
    bool first_lives = false;
    for (int second = 0;; ++second) {
      Memory m;
      Process(m, -1, how).Work(kFirst);
      first_lives = Lives(m, first, how, [](Process& p) { p.Work(kSecond); });
      const bool second_lives = Lives(m, second, how, [](Process& p) {
        p.Recover();
        p.Work(kSecond);
      });
      Process last(m, -1, how);
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

INSTANTIATE_TEST_SUITE_P(Both, BlockJournalTest, testing::Values(How::kMutate, How::kPass),
                         [](const auto& info) {
                           return info.param == How::kMutate ? "TwoPasses" : "OnePass";
                         });

}  // namespace
}  // namespace sherd

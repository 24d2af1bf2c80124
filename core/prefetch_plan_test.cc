#include "core/prefetch_plan.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

using Ids = std::vector<int>;

// Carries the plan's decisions out and checks every rule that does not depend on the order.
class Memory {
 public:
  Memory(std::vector<PrefetchPlan::Unit> units, PrefetchLimits limits)
      : units_(units), limits_(limits), plan_(std::move(units), limits) {}

  PrefetchPlan& plan() { return plan_; }
  int64_t live() const {
    int64_t n = 0;
    for (int u : live_) n += units_[u].elements;
    return n;
  }

  PrefetchPlan::Effects Use(int u) {
    const PrefetchPlan::Effects e = plan_.Use(u);
    Drop(e.release);
    if (e.gather >= 0) {
      EXPECT_EQ(e.gather, u);
      EXPECT_TRUE(live_.insert(u).second);
    }
    uses_.insert(u);
    // On demand a unit may pass the limit, with nothing idle beside it.
    if (live() > limits_.max_live) {
      for (int v : live_) EXPECT_TRUE(uses_.count(v)) << v << " is idle above the limit";
      EXPECT_TRUE(e.prefetch.empty());
    }
    int64_t ahead = 0;
    for (int v : e.prefetch) {
      EXPECT_TRUE(live_.insert(v).second);
      ahead += units_[v].elements;
    }
    if (!e.prefetch.empty()) {
      EXPECT_LE(live(), limits_.max_live);
      EXPECT_TRUE(ahead <= limits_.prefetch_bucket || e.prefetch.size() == 1);
    }
    EXPECT_TRUE(units_[u].persistent || live_.count(u)) << u << " is used and not there";
    Check();
    return e;
  }
  void Unuse(int u) {
    uses_.erase(uses_.find(u));
    Drop(plan_.Unuse(u));
    Check();
  }
  void EndPass(bool last) {
    Drop(plan_.EndPass());
    if (last) {
      for (int u : live_) EXPECT_TRUE(uses_.count(u)) << u << " outlives its values";
    }
    Check();
  }

 private:
  void Drop(const Ids& units) {
    for (int u : units) {
      EXPECT_FALSE(uses_.count(u)) << u << " is released while it is used";
      EXPECT_EQ(live_.erase(u), 1u);
    }
  }
  void Check() {
    for (size_t u = 0; u < units_.size(); ++u) {
      EXPECT_EQ(plan_.live(u), units_[u].persistent || live_.count(u) != 0);
      if (units_[u].persistent) {
        EXPECT_EQ(live_.count(u), 0u);
      }
    }
    EXPECT_EQ(plan_.live_elements(), live());
    const PrefetchPlan::Stats& s = plan_.stats();
    EXPECT_EQ(s.gathers - s.releases, static_cast<int64_t>(live_.size()));
    EXPECT_LE(s.hits + s.kept, s.uses);
  }

  const std::vector<PrefetchPlan::Unit> units_;
  const PrefetchLimits limits_;
  PrefetchPlan plan_;
  std::set<int> live_;
  std::multiset<int> uses_;
};

// A pass as a model makes it: units in order, and backwards again.
void Pass(Memory& m, const Ids& order, bool last = true) {
  m.plan().BeginPass(last);
  for (int u : order) m.Use(u), m.Unuse(u);
  for (auto u = order.rbegin(); u != order.rend(); ++u) m.Use(*u), m.Unuse(*u);
  m.EndPass(last);
}

PrefetchLimits Limits(int64_t bucket, int64_t live, int64_t reuse) {
  PrefetchLimits l;
  l.prefetch_bucket = bucket, l.max_live = live, l.max_reuse_distance = reuse;
  return l;
}

TEST(PrefetchPlanTest, TheFirstPassRecordsAndTheSecondGathersAhead) {
  Memory m({{10, false}, {10, false}, {10, false}, {10, false}}, Limits(10, 1000, 0));
  Pass(m, {0, 1, 2, 3});
  EXPECT_EQ(m.plan().stats().gathers, 8);
  EXPECT_EQ(m.plan().stats().hits, 0);
  EXPECT_EQ(m.plan().stats().peak_live, 10);
  EXPECT_EQ(m.plan().order(), (Ids{0, 1, 2, 3, 3, 2, 1, 0}));
  Pass(m, {0, 1, 2, 3});
  EXPECT_EQ(m.plan().stats().gathers, 16);
  // All but the first use, and the one that comes right after a use of the same unit, which is in use when
  // looked ahead to.
  EXPECT_EQ(m.plan().stats().hits, 6);
  EXPECT_EQ(m.plan().stats().peak_live, 20);
  EXPECT_EQ(m.live(), 0);
}

TEST(PrefetchPlanTest, UnitsStayWithinTheReuseDistance) {
  // From the use of 2 in the forward pass to the next: nothing between. Of 1: two uses of 2. Of 0: 40.
  for (const auto& [distance, gathers] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 6}, {1, 5}, {21, 4}, {41, 3}}) {
    Memory m({{10, false}, {10, false}, {10, false}}, Limits(0, 1000, distance));
    Pass(m, {0, 1, 2});
    const int64_t before = m.plan().stats().gathers;
    EXPECT_EQ(before, 6);
    Pass(m, {0, 1, 2});
    EXPECT_EQ(m.plan().stats().gathers - before, gathers) << distance;
  }
}

TEST(PrefetchPlanTest, NothingIsKeptBeyondTheLiveLimit) {
  Memory m({{10, false}, {10, false}, {10, false}}, Limits(1000, 20, 1000));
  for (int i = 0; i < 4; ++i) Pass(m, {0, 1, 2});
  EXPECT_EQ(m.plan().stats().peak_live, 20);
  Memory one({{10, false}, {10, false}, {10, false}}, Limits(1000, 5, 1000));
  for (int i = 0; i < 4; ++i) Pass(one, {0, 1, 2});
  EXPECT_EQ(one.plan().stats().peak_live, 10);  // what is in use must be there
}

TEST(PrefetchPlanTest, PersistentUnitsAreAlwaysThere) {
  Memory m({{10, true}, {10, false}}, Limits(1000, 1000, 1000));
  m.plan().BeginPass(true);
  EXPECT_TRUE(m.plan().live(0));
  EXPECT_EQ(m.Use(0).gather, -1);
  m.Unuse(0);
  EXPECT_TRUE(m.plan().live(0));
  m.EndPass(true);
  EXPECT_EQ(m.plan().stats().uses, 0);
  EXPECT_EQ(m.plan().stats().peak_live, 0);
}

TEST(PrefetchPlanTest, NestedUsesReleaseOnce) {
  Memory m({{10, false}}, Limits(0, 1000, 0));
  m.plan().BeginPass(true);
  EXPECT_EQ(m.Use(0).gather, 0);
  EXPECT_EQ(m.Use(0).gather, -1);
  m.Unuse(0);
  EXPECT_TRUE(m.plan().live(0));
  m.Unuse(0);
  EXPECT_FALSE(m.plan().live(0));
  m.EndPass(true);
}

TEST(PrefetchPlanTest, AnotherOrderIsRecordedAnew) {
  Memory m({{10, false}, {10, false}, {10, false}}, Limits(10, 1000, 0));
  Pass(m, {0, 1, 2});
  Pass(m, {0, 2});  // departs after 0, with 1 gathered ahead
  EXPECT_EQ(m.plan().stats().reorders, 1);
  EXPECT_EQ(m.plan().order(), (Ids{0, 2, 2, 0}));
  EXPECT_EQ(m.live(), 0);
  const int64_t hits = m.plan().stats().hits;
  Pass(m, {0, 2});
  EXPECT_EQ(m.plan().stats().reorders, 1);
  EXPECT_GT(m.plan().stats().hits, hits);
}

TEST(PrefetchPlanTest, APassWithoutUsesOrAnEarlyEndKeepsTheOrder) {
  Memory m({{10, false}, {10, false}}, Limits(10, 1000, 0));
  Pass(m, {0, 1});
  const Ids order = m.plan().order();
  Pass(m, {});
  EXPECT_EQ(m.plan().order(), order);
  m.plan().BeginPass(true);
  m.Use(0), m.Unuse(0);
  m.EndPass(true);
  EXPECT_EQ(m.plan().order(), order);
  EXPECT_EQ(m.live(), 0);
}

TEST(PrefetchPlanTest, MicroBatchesOfAStepShareWhatIsKept) {
  Memory m({{10, false}, {10, false}}, Limits(0, 1000, 1000));
  Pass(m, {0, 1}, /*last=*/false);
  Pass(m, {0, 1}, false);
  EXPECT_EQ(m.live(), 20);  // the next pass sees the same values
  const int64_t gathers = m.plan().stats().gathers;
  Pass(m, {0, 1}, true);
  EXPECT_EQ(m.plan().stats().gathers, gathers);
  EXPECT_EQ(m.live(), 0);
}

TEST(PrefetchPlanTest, UsesOutsideAPassLeaveTheOrderAlone) {
  Memory m({{10, false}, {10, false}}, Limits(10, 1000, 1000));
  Pass(m, {0, 1});
  const Ids order = m.plan().order();
  for (int u : {1, 0, 1}) m.Use(u), m.Unuse(u);
  EXPECT_EQ(m.plan().order(), order);
  EXPECT_EQ(m.live(), 0);
}

TEST(PrefetchPlanTest, AnExceptionLeavesUnitsInUseThatAreReleasedLater) {
  Memory m({{10, false}, {10, false}}, Limits(10, 1000, 1000));
  m.plan().BeginPass(true);
  m.Use(0);
  m.EndPass(true);  // in use: stays
  EXPECT_TRUE(m.plan().live(0));
  m.plan().BeginPass(true);
  m.Unuse(0);
  EXPECT_FALSE(m.plan().live(0));
  m.EndPass(true);
}

// Every sequence of five acts on three units, for every combination of small limits: Memory checks the rules.
TEST(PrefetchPlanTest, EveryShortSequence) {
  constexpr int kActs = 5, kKinds = 5;  // use 0, 1, 2; end the oldest use; end the pass
  int sequences = 0;
  for (int64_t bucket : {0, 2, 8}) {
    for (int64_t live : {1, 5, 100}) {
      for (int64_t reuse : {0, 3, 100}) {
        for (int code = 0; code < 5 * 5 * 5 * 5 * 5; ++code, ++sequences) {
          Memory m({{1, false}, {2, false}, {4, false}}, Limits(bucket, live, reuse));
          // An order to follow first.
          Pass(m, {0, 1, 2});
          m.plan().BeginPass(code % 2 == 0);
          Ids open;
          int rest = code;
          for (int act = 0; act < kActs; ++act, rest /= kKinds) {
            const int kind = rest % kKinds;
            if (kind < 3) {
              m.Use(kind), open.push_back(kind);
            } else if (kind == 3 && !open.empty()) {
              m.Unuse(open.front()), open.erase(open.begin());
            } else if (kind == 4) {
              m.EndPass(code % 2 == 0), m.plan().BeginPass(code % 2 == 0);
            }
          }
          for (int u : open) m.Unuse(u);
          m.EndPass(code % 2 == 0);
          m.plan().BeginPass(true);
          m.EndPass(true);
          ASSERT_EQ(m.live(), 0) << "code " << code << " bucket " << bucket << " live " << live << " reuse "
                                 << reuse;
          ASSERT_FALSE(HasFailure()) << "code " << code;
        }
      }
    }
  }
  EXPECT_EQ(sequences, 27 * 3125);
}

TEST(PrefetchPlanTest, LongRandomRuns) {
  const uint32_t seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int run = 0; run < 200; ++run) {
    std::vector<PrefetchPlan::Unit> units;
    for (int u = 0; u < 8; ++u) units.push_back({1 + static_cast<int64_t>(random() % 20), random() % 5 == 0});
    Memory m(units, Limits(random() % 40, random() % 100, random() % 200));
    Ids order = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int pass = 0; pass < 6; ++pass) {
      if (random() % 3 == 0) std::shuffle(order.begin(), order.end(), random);
      Ids some(order.begin(), order.begin() + random() % 9);
      Pass(m, some, random() % 2 == 0);
    }
    Pass(m, order);
    ASSERT_EQ(m.live(), 0);
    ASSERT_FALSE(HasFailure()) << "run " << run;
  }
}

}  // namespace
}  // namespace sherd

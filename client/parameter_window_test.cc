#include "client/parameter_window.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sherd::client {
namespace {

// A source whose acts are told, and which may fail.
class ToldSource : public UnitSource {
 public:
  explicit ToldSource(std::string* told, int* failing) : told_(told), failing_(failing) {}
  const char* Base(int, bool) const override { return nullptr; }
  int64_t Bytes(int unit) const override { return 100 * (unit + 1); }
  void Begin(int unit) override { *told_ += "begin " + std::to_string(unit) + ","; }
  absl::Status Await(int unit) override {
    *told_ += "await " + std::to_string(unit) + ",";
    return unit == *failing_ ? absl::UnavailableError("host 1 is gone") : absl::OkStatus();
  }
  void Drop(int unit) override { *told_ += "drop " + std::to_string(unit) + ","; }

 private:
  std::string* const told_;
  int* const failing_;
};

class ParameterWindowTest : public ::testing::Test {
 protected:
  void Open(const std::vector<bool>& persistent, const PrefetchLimits& limits) {
    std::vector<std::vector<TensorSpec>> units;
    for (size_t u = 0; u < persistent.size(); ++u) {
      TensorSpec t;
      t.name = std::to_string(u);
      t.shape = {10};
      units.push_back({t});
    }
    auto window = ParameterWindow::Create(*Layout::Create(units), persistent, limits,
                                          std::make_unique<ToldSource>(&told_, &failing_));
    ASSERT_TRUE(window.ok()) << window.status();
    window_ = *std::move(window);
  }
  std::string Told() { return std::exchange(told_, ""); }
  void Use(int unit) {
    ASSERT_TRUE(window_->Gather(unit).ok());
    EXPECT_EQ(window_->readable(unit)->load(), 1);
    window_->Release(unit);
  }

  std::string told_;
  int failing_ = -1;
  std::unique_ptr<ParameterWindow> window_;
};

PrefetchLimits Limits(int64_t bucket, int64_t reuse) {
  PrefetchLimits l;
  l.prefetch_bucket = bucket, l.max_reuse_distance = reuse;
  return l;
}

TEST_F(ParameterWindowTest, PersistentUnitsAreThereFromTheBeginning) {
  Open({true, false}, Limits(0, 0));
  EXPECT_EQ(Told(), "begin 0,await 0,");
  EXPECT_EQ(window_->stats().live_bytes, 100);
  Use(0);
  EXPECT_EQ(Told(), "");
  Use(1);
  EXPECT_EQ(Told(), "begin 1,await 1,drop 1,");
  EXPECT_EQ(window_->readable(1)->load(), 0);
  EXPECT_EQ(window_->stats().live_bytes, 100);
  EXPECT_EQ(window_->stats().peak_live_bytes, 300);
}

TEST_F(ParameterWindowTest, WhatIsGatheredAheadIsAwaitedWhenItIsUsed) {
  Open({false, false, false}, Limits(256, 0));
  for (int pass = 0; pass < 2; ++pass) {
    window_->BeginPass(true);
    Told();
    for (const int u : {0, 1, 2}) Use(u);
    window_->EndPass();
  }
  EXPECT_EQ(Told(), "begin 0,begin 1,await 0,drop 0,begin 2,await 1,drop 1,await 2,drop 2,");
  // Gathered ahead and not used: not waited for.
  window_->BeginPass(true);
  Use(0);
  Told();
  window_->EndPass();
  EXPECT_EQ(Told(), "drop 1,");
  EXPECT_EQ(window_->stats().live_bytes, 0);
}

TEST_F(ParameterWindowTest, AnErrorLeavesTheUnitReleased) {
  Open({false, false}, Limits(0, 0));
  failing_ = 1;
  EXPECT_EQ(window_->Gather(1).message(), "host 1 is gone");
  EXPECT_FALSE(window_->InUse(1));
  EXPECT_EQ(window_->readable(1)->load(), 0);
  EXPECT_EQ(window_->stats().live_bytes, 0);
  failing_ = -1;
  Use(1);
  EXPECT_EQ(window_->stats().live_bytes, 0);
  const auto flag = window_->readable(1);
  window_.reset();
  EXPECT_EQ(flag->load(), 0);  // without the window
}

TEST_F(ParameterWindowTest, OtherNumbersOfUnitsAreRefused) {
  const auto window = ParameterWindow::Create(*Layout::Create({}), {true}, PrefetchLimits(),
                                              std::make_unique<ToldSource>(&told_, &failing_));
  EXPECT_EQ(window.status().message(), "the layout has 0 units, not 1");
}

}  // namespace
}  // namespace sherd::client

// Exits of a host's processes, as they are told to the coordinator. No process is real here, so none may be
// killed (Member.must_die).
#include "server/host_watch.h"

#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/fake_exit_watch.h"
#include "runtime/mutex.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;
using runtime::ProcessIdentity;

class HostWatchTest : public ::testing::Test {
 protected:
  HostWatchTest() {
    host_watch_.emplace("h1", &exits_, [this](const ProcessIdentity& process) {
      MutexLock lock(mu_);
      reported_.push_back(process.pid);
      told_.SignalAll();
      return failures_-- > 0 ? absl::UnavailableError("not now") : absl::OkStatus();
    });
  }

  ProcessIdentity Add(const char* host) {
    const ProcessIdentity process = exits_.Start();
    v1::Member* const m = cluster_.add_members();
    m->set_host(host);
    m->mutable_process()->set_pid(process.pid);
    m->mutable_process()->set_start_ticks(process.start_ticks);
    return process;
  }
  void Look() { host_watch_->Look(cluster_); }
  std::vector<int> AwaitReports(size_t count) {
    MutexLock lock(mu_);
    while (reported_.size() < count) told_.Wait(mu_);
    return reported_;
  }
  // What is told of a process that ends now comes after all that was told before.
  std::vector<int> ReportsOnceQuiet() {
    const ProcessIdentity last = Add("h1");
    Look();
    exits_.Exit(last);
    exits_.Deliver();
    MutexLock lock(mu_);
    while (reported_.empty() || reported_.back() != last.pid) told_.Wait(mu_);
    return {reported_.begin(), reported_.end() - 1};
  }

  runtime::FakeExitWatch exits_;
  v1::Cluster cluster_;
  runtime::Mutex mu_;
  runtime::CondVar told_;
  std::vector<int> reported_ ABSL_GUARDED_BY(mu_);
  int failures_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<HostWatch> host_watch_;  // last: reports to the members before
};

TEST_F(HostWatchTest, AnExitIsToldOnceHoweverOftenItWasSeen) {
  const ProcessIdentity often = Add("h1");
  for (int i = 0; i < 5; ++i) Look();
  const ProcessIdentity seen_once = Add("h1");
  const ProcessIdentity elsewhere = Add("h2");
  Look();
  exits_.Exit(often);
  EXPECT_EQ(exits_.Deliver(), 1);
  exits_.Exit(seen_once);
  exits_.Exit(elsewhere);
  EXPECT_EQ(exits_.Deliver(), 1);
  Look();
  EXPECT_EQ(ReportsOnceQuiet(), (std::vector<int>{often.pid, seen_once.pid}));
}

TEST_F(HostWatchTest, WhatWasNotTakenIsToldAgain) {
  {
    MutexLock lock(mu_);
    failures_ = 2;
  }
  const ProcessIdentity process = Add("h1");
  Look();
  exits_.Exit(process);
  exits_.Deliver();
  EXPECT_EQ(AwaitReports(3), std::vector<int>(3, process.pid));
}

TEST_F(HostWatchTest, NothingIsWatchedOnceItHasGone) {
  const ProcessIdentity process = Add("h1");
  for (int i = 0; i < 3; ++i) Look();
  host_watch_.reset();
  exits_.Exit(process);
  EXPECT_EQ(exits_.Deliver(), 0);
}

}  // namespace
}  // namespace sherd::server

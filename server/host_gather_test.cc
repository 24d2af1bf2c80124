// Two hosts of one process, each with its gatherer, and a connection between them that can be lost.
#include "server/host_gather.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/test_links.h"
#include "runtime/test_root.h"
#include "server/host_incoming.h"
#include "server/host_outgoing.h"

namespace sherd::server {
namespace {

using runtime::FrameHeader;
using runtime::JobDir;
using runtime::JobMemory;
using runtime::Link;

constexpr uint64_t kValues = UnitValues::Of(Step(1), 0);

class HostGatherTest : public runtime::TestLinks {
 protected:
  struct Host {
    explicit Host(int index, int64_t max_live = 0) : dir(*JobDir::Create(root.path(), "t")) {
      JobSpec spec;
      spec.job = "t";
      spec.layout = *Layout::Create({{{"w", {1 << 20}}}, {{"v", {3000}}}, {{"kept", {1000}}}});
      spec.groups = {""};
      spec.world_size = 2;
      spec.stage = 3;
      spec.reduction.groups = {1, 1};
      spec.gather.persistent = {2};
      spec.gather.initial_shares = true;
      spec.gather.max_live = max_live;
      auto made = JobMemory::Create(&dir, spec, {index, 2});
      EXPECT_TRUE(made.ok()) << made.status();
      memory = *std::move(made);
      EXPECT_TRUE(memory->BeginFirstAssignment(1, *HostMap::Create({0, 1})).ok());
      memory->trainer(Rank(index)).Set({1, 1}, 1, runtime::MemberEntry::kAttached);
      memory->control().initialized = 1;
      memory->gather()->said[1 - index] = kInitialized;
      for (const UnitInfo& u : memory->layout().units()) {
        const BlockRange own = HostShare(u.blocks, index, {2, 2});
        std::fill_n(memory->plane(0) + own.begin * kBlockElements, own.size() * kBlockElements, 1.0f + index);
      }
      gather = std::make_unique<HostGather>(memory.get(), runtime::SpinPolicy::None());
    }
    void Want(int unit, UnitWant::How how, uint64_t values = kValues) {
      memory->rank(Rank(memory->place().index)).Gather(unit) = UnitWant{values, ++times, how}.word();
      memory->gather()->bell.Ring();
    }
    // Until `so`, which the agent rings the rank's bell for, or nobody does.
    template <typename So>
    void Await(So so) {
      runtime::DoorbellWord& bell = memory->trainer(Rank(memory->place().index)).bell;
      for (const absl::Time end = runtime::Soon(); !so();) {
        const uint32_t ticket = bell.Listen();
        if (so()) return;
        ASSERT_LT(runtime::SteadyNow(), end);
        bell.Wait(ticket, absl::Milliseconds(5), runtime::SpinPolicy::None());
      }
    }
    void AwaitHere(int unit, uint64_t values = kValues) {
      Await([&] { return memory->gather()->here(unit).load() == values; });
    }
    // Whether all of a unit is what the two hosts made of it.
    bool Whole(int unit) const {
      bool whole = true;
      const BlockRange blocks = memory->layout().units()[unit].blocks;
      for (int h = 0; h < 2; ++h) {
        const BlockRange share = HostShare(blocks, h, {2, 2});
        const float* begin = memory->plane(0) + share.begin * kBlockElements;
        const int64_t elements = share.size() * kBlockElements;
        whole &= std::count(begin, begin + elements, 1.0f + h) == elements;
      }
      return whole;
    }
    runtime::TestRoot root;
    JobDir dir;
    std::unique_ptr<JobMemory> memory;
    std::unique_ptr<HostGather> gather;
    uint32_t times = 0;
  };

  // One connection, both ways, until it is aborted.
  class Connection {
   public:
    Connection(Host* first, Host* second, Link* a, Link* b) : a_(a) {
      Host* const hosts[] = {first, second};
      Link* const links[] = {a, b};
      for (int h = 0; h < 2; ++h) {
        Host* const host = hosts[h];
        Link* const link = links[h];
        GatherRequests* const requests = &requests_[h];
        threads_.emplace_back([=] {
          HostIncoming incoming(host->memory.get(), 1 - h, host->gather.get(), requests);
          FrameHeader header;
          while (link->Receive(&header).ok()) {
            if (header.type != static_cast<uint16_t>(HostFrame::kHello) && !incoming.Take(*link, header).ok())
              break;
          }
        });
        threads_.emplace_back([=] {
          HostBytes bytes;
          HostOutgoing outgoing(host->memory.get(), 1 - h, &bytes, host->gather.get(), requests);
          outgoing.Begin(/*peer_initialized=*/true);
          runtime::DoorbellWord& bell = host->memory->control().link_bell;
          for (;;) {
            const uint32_t ticket = bell.Listen();
            const absl::StatusOr<bool> more = outgoing.Pass(*link);
            if (!more.ok() || link->health().state == runtime::LinkHealth::State::kClosed) return;
            if (!*more) bell.Wait(ticket, absl::Milliseconds(20), runtime::SpinPolicy::None());
          }
        });
      }
    }
    ~Connection() {
      a_->Abort("the end");
      for (std::thread& t : threads_) t.join();
    }

   private:
    Link* const a_;
    GatherRequests requests_[2];
    std::vector<std::thread> threads_;
  };

  Host first_{0}, second_{1};
};

TEST_F(HostGatherTest, BothHostsGetWhatTheyWantAndGiveItBack) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const Connection connection(&first_, &second_, a_.get(), b_.get());
  for (int round = 0; round < 3; ++round) {
    for (Host* host : {&first_, &second_}) {
      for (const int unit : {0, 1}) host->Want(unit, UnitWant::kNow);
    }
    for (Host* host : {&first_, &second_}) {
      for (const int unit : {0, 1}) {
        host->AwaitHere(unit);
        EXPECT_TRUE(host->Whole(unit)) << unit;
        host->Want(unit, UnitWant::kNot);
        host->AwaitHere(unit, 0);
        host->Await([&] { return unit == 1 || !host->Whole(0); });
      }
      host->Await([&] { return host->memory->gather()->bytes == 0; });
      EXPECT_GE(host->memory->gather()->peak_bytes.load(), host->memory->GatheredBytes(0));
    }
  }
}

TEST_F(HostGatherTest, WantsAreSaidAgainOverTheNextConnection) {
  second_.Want(0, UnitWant::kNow);
  second_.Await([&] { return second_.gather->Asked(0) != 0; });
  ASSERT_NO_FATAL_FAILURE(Connect());
  {
    const Connection connection(&first_, &second_, a_.get(), b_.get());
    second_.AwaitHere(0);
    second_.Want(1, UnitWant::kNow);
  }
  second_.Await([&] { return second_.memory->gather()->here(1) != 0 || second_.gather->Asked(1) != 0; });
  ASSERT_NO_FATAL_FAILURE(Connect());
  const Connection connection(&first_, &second_, a_.get(), b_.get());
  second_.AwaitHere(1);
  EXPECT_TRUE(second_.Whole(0));
  EXPECT_TRUE(second_.Whole(1));
}

TEST_F(HostGatherTest, ASuccessorKeepsWhatIsHereAndBringsWhatIsNot) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  {
    const Connection connection(&first_, &second_, a_.get(), b_.get());
    second_.Want(0, UnitWant::kNow);
    second_.AwaitHere(0);
  }
  second_.Want(1, UnitWant::kNow);
  second_.Await([&] { return second_.gather->Asked(1) != 0; });
  second_.gather.reset();
  second_.gather = std::make_unique<HostGather>(second_.memory.get(), runtime::SpinPolicy::None());
  ASSERT_NO_FATAL_FAILURE(Connect());
  const Connection connection(&first_, &second_, a_.get(), b_.get());
  second_.AwaitHere(1);
  EXPECT_EQ(second_.memory->gather()->here(0), kValues);
  EXPECT_TRUE(second_.Whole(0));
  EXPECT_TRUE(second_.Whole(1));
  second_.Want(0, UnitWant::kNot);
  second_.AwaitHere(0, 0);
  second_.Await([&] { return second_.memory->gather()->bytes == second_.memory->GatheredBytes(1); });
}

TEST_F(HostGatherTest, AUnitLeavesItsMemoryForItsNextValuesWithinTheLimit) {
  constexpr int64_t kUnit0 = 1 << 20;
  for (const int64_t limit : {kUnit0, 2 * kUnit0}) {
    Host host(1, limit);
    const int64_t bytes[] = {host.memory->GatheredBytes(0), host.memory->GatheredBytes(1)};
    ASSERT_NO_FATAL_FAILURE(Connect());
    const Connection connection(&first_, &host, a_.get(), b_.get());
    host.Want(0, UnitWant::kNow);
    host.AwaitHere(0);
    host.Want(0, UnitWant::kNot);
    host.AwaitHere(0, 0);
    host.Want(1, UnitWant::kNow);
    host.AwaitHere(1);
    EXPECT_TRUE(host.Whole(1));
    // There is room for what unit 0 left, or there is not.
    EXPECT_EQ(host.memory->gather()->bytes, limit == kUnit0 ? bytes[1] : bytes[0] + bytes[1]);
    const BlockRange own = HostShare(first_.memory->layout().units()[0].blocks, 0, {2, 2});
    float* const changed = first_.memory->plane(0) + own.begin * kBlockElements;
    *changed = 5;
    const uint64_t next = UnitValues::Of(Step(2), 0);
    host.Want(0, UnitWant::kNow, next);
    host.AwaitHere(0, next);
    EXPECT_EQ(host.memory->plane(0)[own.begin * kBlockElements], 5);
    EXPECT_EQ(host.memory->gather()->bytes, bytes[0] + bytes[1]);  // now wanted both
    *changed = 1;
  }
}

TEST_F(HostGatherTest, WhatWasWantedForAnEarlierStepComesAnew) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const Connection connection(&first_, &second_, a_.get(), b_.get());
  second_.Want(0, UnitWant::kNow);
  second_.AwaitHere(0);
  const BlockRange own = HostShare(first_.memory->layout().units()[0].blocks, 0, {2, 2});
  first_.memory->plane(0)[own.begin * kBlockElements] = 5;
  const uint64_t next = UnitValues::Of(Step(2), 0);
  second_.Want(0, UnitWant::kNow, next);
  second_.AwaitHere(0, next);
  EXPECT_EQ(second_.memory->plane(0)[own.begin * kBlockElements], 5);
  EXPECT_EQ(second_.memory->gather()->bytes, second_.memory->GatheredBytes(0));
}

}  // namespace
}  // namespace sherd::server

#include "core/epoch_doc.h"

#include <functional>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

EpochDoc Good() {
  EpochDoc doc;
  doc.job = "gpt";
  doc.epoch = Epoch(7);
  doc.reason = "rank 1 attached";
  doc.world_size = 2;
  doc.trainers = {{Incarnation(2), {20, 1}, "h", true}, {}};
  doc.layout_hash = 0xab;
  doc.trainers_epoch = Epoch(7);
  doc.servers = {{"s0", "unix:a", "h", {10, 1}, Incarnation(1)},
                 {"s1", "unix:b", "h", {11, 1}, Incarnation(3)}};
  doc.owning_servers = doc.desired_servers = 2;
  doc.ranges_epoch = Epoch(1);
  return doc;
}

TEST(EpochDocTest, ShowsOneLine) {
  EXPECT_EQ(Show(Good()),
            "epoch=7 servers=[s0=10.1#1 s1=11.1#3] owning=2 desired=2 ranges_epoch=1 trainers=[20.1#2 -] "
            "trainers_epoch=7 layout=ab \"rank 1 attached\"");
}

EpochDoc OnTwoHosts() {
  EpochDoc doc = Good();
  doc.hosts = {{"a", "10.0.0.1:7000", 1, 1}, {"b", "10.0.0.2:7000", 1, 1}};
  doc.servers.Mutable(0).host = "a";
  doc.servers.Mutable(1).host = "b";
  return doc;
}

TEST(EpochDocTest, SeveralHosts) {
  const EpochDoc doc = OnTwoHosts();
  EXPECT_TRUE(CheckEpochDoc(doc).ok()) << CheckEpochDoc(doc);
  EXPECT_EQ(Show(doc).substr(0, 60), "epoch=7 hosts=[a:1+1 b:1+1] servers=[s0=10.1#1@0 s1=11.1#3@1");
  EXPECT_EQ(SlotHosts(doc, 2)->ToString(), "0,1");
  EXPECT_EQ(SlotHosts(doc, 5)->ToString(), "0,1,0,1,0");
  EXPECT_EQ(SlotHosts(doc, 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(RankHosts(doc).HostOf(Rank(1)), 1);
  EXPECT_EQ(SlotHosts(Good(), 2)->hosts(), 1);
  EXPECT_EQ(RankHosts(Good()).hosts(), 1);
  const auto expect = [](const std::function<void(EpochDoc&)>& spoil, const char* words) {
    EpochDoc doc = OnTwoHosts();
    spoil(doc);
    EXPECT_TRUE(absl::StrContains(CheckEpochDoc(doc).message(), words)) << CheckEpochDoc(doc);
  };
  expect([](EpochDoc& d) { d.hosts.pop_back(); }, "it has 1 hosts");
  expect([](EpochDoc& d) { d.hosts[1].name = "a"; }, "host \"a\" is repeated");
  expect([](EpochDoc& d) { d.hosts[1].ranks = 2; }, "its hosts have 3 ranks, world_size is 2");
  expect([](EpochDoc& d) { d.hosts[1].servers = 0; }, "host b has 1 ranks, 0 servers");
  expect([](EpochDoc& d) { d.servers.Mutable(1).host = "c"; },
         "server s1 is on host \"c\" but its slot is on host b");
  expect([](EpochDoc& d) { d.servers.Mutable(1).host = "a"; }, "server s1 is on host \"a\"");
  expect(
      [](EpochDoc& d) {
        d.servers.pop_back();
        d.owning_servers = d.desired_servers = 1;
      },
      "host b has none");
}

TEST(EpochDocTest, AcceptsWhatCanBeCommitted) {
  EXPECT_TRUE(CheckEpochDoc(Good()).ok());
  EpochDoc waiting = Good();  // a resize up for which servers are missing
  waiting.desired_servers = 4;
  EXPECT_TRUE(CheckEpochDoc(waiting).ok()) << CheckEpochDoc(waiting);
  EpochDoc down = Good();
  down.desired_servers = 1;
  down.proposed_epoch = Epoch(7);
  EXPECT_TRUE(CheckEpochDoc(down).ok()) << CheckEpochDoc(down);
  EpochDoc up = down;
  up.owning_servers = 1;
  up.desired_servers = 2;
  EXPECT_TRUE(CheckEpochDoc(up).ok()) << CheckEpochDoc(up);
}

TEST(EpochDocTest, RefusesContradictions) {
  const auto expect = [](const std::function<void(EpochDoc&)>& spoil, const char* words) {
    EpochDoc doc = Good();
    spoil(doc);
    const absl::Status status = CheckEpochDoc(doc);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << status;
  };
  expect([](EpochDoc& d) { d.epoch = Epoch(0); }, "epoch is 0");
  expect([](EpochDoc& d) { d.owning_servers = 0; }, "owning_servers is 0 of 2");
  expect([](EpochDoc& d) { d.owning_servers = 3; }, "owning_servers is 3 of 2");
  expect([](EpochDoc& d) { d.desired_servers = 0; }, "desired_servers is 0");
  expect([](EpochDoc& d) { d.owning_servers = d.desired_servers = 1; }, "neither");
  expect([](EpochDoc& d) { d.desired_servers = 1; }, "proposed_epoch is 0");
  expect([](EpochDoc& d) { d.proposed_epoch = Epoch(3); }, "proposed_epoch is 3");
  expect([](EpochDoc& d) { d.world_size = 3; }, "world_size is 3 with 2 trainers");
  expect([](EpochDoc& d) { d.world_size = -1; }, "world_size is -1");
  expect([](EpochDoc& d) { d.ranges_epoch = Epoch(8); }, "ranges_epoch 8");
  expect([](EpochDoc& d) { d.trainers_epoch = Epoch(9); }, "trainers_epoch 9");
  expect([](EpochDoc& d) { d.servers.Mutable(1).id = "s0"; }, "\"s0\" is repeated");
  expect([](EpochDoc& d) { d.servers.Mutable(0).process.pid = 0; }, "server s0 has pid 0");
  expect([](EpochDoc& d) { d.trainers[0].process.pid = -4; }, "pid -4");
  expect([](EpochDoc& d) { d.draining = "s9"; }, "draining names \"s9\"");
}

}  // namespace
}  // namespace sherd

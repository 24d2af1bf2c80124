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
  expect([](EpochDoc& d) { d.servers[1].id = "s0"; }, "\"s0\" is repeated");
  expect([](EpochDoc& d) { d.servers[0].process.pid = 0; }, "server s0 has pid 0");
  expect([](EpochDoc& d) { d.trainers[0].process.pid = -4; }, "pid -4");
  expect([](EpochDoc& d) { d.draining = "s9"; }, "draining names \"s9\"");
}

}  // namespace
}  // namespace sherd

// What survivors say of a lost host, as they say it (host_survivor.h) and as a peer of another version might.
#include "server/host_records.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/test_root.h"
#include "server/host_survivor.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

constexpr int kHosts = 3, kLost = 1;
constexpr uint64_t kIncarnation = 1 << 20;

class HostRecordsTest : public ::testing::Test {
 protected:
  HostRecordsTest() {
    for (int h = 0; h < kHosts; ++h) {
      hosts_.push_back(std::make_unique<TestHost>(root_.path(), h, kHosts));
      runtime::JobMemory& memory = *hosts_[h]->memory;
      EXPECT_TRUE(memory.BeginFirstAssignment(7, *HostMap::Create({0, 1, 2})).ok());
      memory.control().initialized = 1;
      memory.control().links[kLost].fenced = kIncarnation;  // as its agent does
    }
  }
  // What a host answers.
  std::vector<v1::HostRecord> Said(int host) {
    v1::FenceHostRequest request;
    request.set_host(kLost);
    request.set_incarnation(kIncarnation);
    std::vector<v1::HostRecord> said;
    const absl::Status s = FenceHostHere(
        *hosts_[host]->memory, request,
        [&](const v1::HostRecord& record) {
          said.push_back(record);
          return true;
        },
        [] { return true; });
    EXPECT_TRUE(s.ok()) << s;
    return said;
  }
  runtime::OwnerRecords& Owner(int host, int slot) { return **hosts_[host]->memory->owner(Slot(slot)); }
  HostRecords New() { return HostRecords(&hosts_[0]->memory->spec(), kHosts, kLost); }
  // Adds what `host` says with one record changed; what came of it.
  template <typename Change>
  absl::Status AddChanged(int host, Change change) {
    HostRecords records = New();
    std::vector<v1::HostRecord> said = Said(host);
    change(said);
    for (v1::HostRecord& record : said) {
      if (absl::Status s = records.Add(host, std::move(record)); !s.ok()) return s;
    }
    return records.Survivors().status();
  }
  void Prepare(int host, int slot) {
    OwnerPrepared prepared;
    prepared.id = {Step(1), 0};
    prepared.ranges_epoch = 7;
    Owner(host, slot).PublishPrepared(prepared);
  }

  runtime::TestRoot root_;
  std::vector<std::unique_ptr<TestHost>> hosts_;
};

TEST_F(HostRecordsTest, WhatSurvivorsSay) {
  Prepare(/*host=*/2, /*slot=*/1);  // came there before the host was lost, and not to host 0
  Prepare(2, 2);
  TrainerStep step;
  step.id = {Step(1), 0};
  step.groups.resize(1);
  step.parts.resize(hosts_[2]->memory->layout().units().size());
  step.has_grad.resize(1);
  ASSERT_TRUE(hosts_[2]->memory->rank(Rank(1)).PublishStep(step, "").ok());
  HostRecords records = New();
  for (const int host : {2, 0}) {
    for (v1::HostRecord& record : Said(host)) ASSERT_TRUE(records.Add(host, std::move(record)).ok());
  }
  EXPECT_EQ(records.LostSlots(), std::vector<int>{1});
  EXPECT_EQ(records.newest(), kIncarnation);
  EXPECT_TRUE(records.about().initialized());
  const auto survivors = records.Survivors();
  ASSERT_TRUE(survivors.ok()) << survivors.status();
  ASSERT_EQ(survivors->size(), 2);
  const std::optional<StepId> prepared = StepId{Step(1), 0};
  EXPECT_EQ((*survivors)[0].lost[0].prepared, std::nullopt);
  EXPECT_EQ((*survivors)[0].own[0].prepared, std::nullopt);
  EXPECT_EQ((*survivors)[1].lost[0].prepared, prepared);
  EXPECT_EQ((*survivors)[1].own[0].prepared, prepared);
  // The one that says more comes last.
  EXPECT_EQ(records.LostPages(1), (std::vector<std::string>{Owner(0, 1).Copy(), Owner(2, 1).Copy()}));
  EXPECT_EQ(records.OwnPages(),
            (std::map<int, std::string>{{0, Owner(0, 0).Copy()}, {2, Owner(2, 2).Copy()}}));
  ASSERT_EQ(records.steps().size(), 1);
  EXPECT_EQ(records.steps().begin()->first, 1);
}

TEST_F(HostRecordsTest, WhatIsNotOfThisJobIsRefusedByName) {
  const auto owner = [](std::vector<v1::HostRecord>& said) -> v1::HostRecord& {
    for (v1::HostRecord& record : said) {
      if (record.has_owner()) return record;
    }
    return said[0];
  };
  const auto expect = [](const absl::Status& s, const std::string& what) {
    EXPECT_EQ(s.code(), absl::StatusCode::kDataLoss) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), "host 2 sent")) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), what)) << s;
  };
  const std::string page = Owner(2, 1).Copy();
  for (const std::string& bytes :
       {std::string(), page.substr(1), page + "x", std::string(page.size(), '\xff')}) {
    expect(AddChanged(2, [&](auto& said) { owner(said).set_owner(bytes); }),
           absl::StrCat(bytes.size(), " bytes that are no record of slot 1"));
  }
  for (const int slot : {-1, 3, 1 << 30}) {
    expect(AddChanged(2, [&](auto& said) { owner(said).set_index(slot); }), absl::StrCat("slot ", slot));
  }
  expect(AddChanged(2, [&](auto& said) { owner(said).set_index(0); }), "slot 0, which host 0 has");
  expect(AddChanged(2, [&](auto& said) { said.erase(said.begin()); }), "slot 1");  // before where slots are
  expect(AddChanged(2, [&](auto& said) { said[0].mutable_about()->set_host_of_slot(1, 3); }), "host 3");
  expect(AddChanged(2, [&](auto& said) { said[1].Clear(); }), "an empty record");
  expect(AddChanged(2, [&](auto& said) { said.pop_back(); }), "0 records of its own owners");
  expect(AddChanged(2, [&](auto& said) { said.erase(said.begin() + 1); }), "0 of host 1, which has 1");
  for (const int rank : {-1, 3}) {
    expect(AddChanged(2,
                      [&](auto& said) {
                        said[1].set_step("");
                        said[1].set_index(rank);
                      }),
           absl::StrCat("rank ", rank));
  }
  expect(AddChanged(2, [&](auto& said) { said[1].set_step("short"); }),
         "5 bytes that are no record of rank 1");
}

}  // namespace
}  // namespace sherd::server

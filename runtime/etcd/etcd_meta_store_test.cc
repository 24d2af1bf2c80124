// MetaStore in etcd, with real etcd servers: what every store promises, then what is particular: servers that
// are killed, restarted, stopped and compacted, answers that are lost, and who leads meanwhile.
#include "runtime/etcd/etcd_meta_store.h"

#include <atomic>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/etcd/etcd_election.h"
#include "runtime/etcd/etcd_lease.h"
#include "runtime/etcd/etcd_watch.h"
#include "runtime/etcd/test_etcd.h"
#include "runtime/meta_store_conformance.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

EtcdMetaStore::Options OptionsFor(const TestEtcd& etcd, const std::string& prefix) {
  EtcdMetaStore::Options options;
  options.endpoints = etcd.endpoints();
  options.prefix = prefix;
  options.ttl = absl::Seconds(2);
  options.patience = kLong;
  return options;
}

std::unique_ptr<EtcdMetaStore> OpenAt(const TestEtcd& etcd, const std::string& prefix = "test") {
  absl::StatusOr<std::unique_ptr<EtcdMetaStore>> store = EtcdMetaStore::Open(OptionsFor(etcd, prefix));
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

// One server for all tests that do it no harm.
std::unique_ptr<TestEtcd>& Shared() {
  static std::unique_ptr<TestEtcd> etcd;
  return etcd;
}

class SharedEtcd final : public ::testing::Environment {
 public:
  void SetUp() override {
    if (TestEtcd::Installed()) Shared() = std::make_unique<TestEtcd>(1);
  }
  void TearDown() override { Shared().reset(); }
};
const ::testing::Environment* const kShared = ::testing::AddGlobalTestEnvironment(new SharedEtcd);

// Ends the lease of who leads. False: nobody does.
bool EndLease(EtcdClient& client, const std::string& election_prefix) {
  etcdserverpb::RangeRequest request;
  request.set_key(election_prefix);
  request.set_range_end(EtcdPrefixEnd(election_prefix));
  request.set_limit(1);
  request.set_sort_order(etcdserverpb::RangeRequest::ASCEND);
  request.set_sort_target(etcdserverpb::RangeRequest::CREATE);
  etcdserverpb::RangeResponse first;
  const absl::Status s = client.Call("read", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
    return server.kv->Range(context, request, &first);
  });
  EXPECT_TRUE(s.ok()) << s;
  return first.kvs_size() == 1 && RevokeEtcdLease(client, first.kvs(0).lease(), SteadyNow() + kLong).ok();
}

class EtcdWorld final : public StoreWorld {
 public:
  std::unique_ptr<MetaStore> Open() override { return OpenAt(*Shared(), prefix_); }
  bool Depose(const std::string& election) override {
    const absl::Time end = SteadyNow() + kLong;
    while (SteadyNow() < end) {
      if (EndLease(Shared()->client(), absl::StrCat("/", prefix_, "/.election/", election, "/"))) return true;
    }
    return false;
  }

 private:
  static std::string NextPrefix() {
    static int count = 0;
    return absl::StrCat("world/", ++count);
  }
  const std::string prefix_ = NextPrefix();
};

std::unique_ptr<StoreWorld> MakeWorld() {
  return Shared() == nullptr ? nullptr : std::make_unique<EtcdWorld>();
}

INSTANTIATE_TEST_SUITE_P(All, MetaStoreConformance, ::testing::Values(StoreKind{"Etcd", MakeWorld}),
                         StoreKindName);

TEST(EtcdPlace, Parses) {
  const absl::StatusOr<EtcdPlace> place = ParseEtcdPlace("etcd://10.0.0.1:2379,[::1]:2379/prod/a");
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(place->endpoints, (std::vector<std::string>{"10.0.0.1:2379", "[::1]:2379"}));
  EXPECT_EQ(place->prefix, "prod/a");
  EXPECT_EQ(ParseEtcdPlace("etcd://h:1")->prefix, "");
  EXPECT_EQ(ParseEtcdPlace("etcd://h:1/")->prefix, "");
  for (const char* bad : {"", "etcd:", "etcd://", "etcd://h", "etcd://h:", "etcd://h:0", "etcd://h:65536",
                          "etcd://:1", "etcd://h:1,", "etcd://h:1,,g:2", "etcd://u@h:1", "etcd://h:1/a b",
                          "etcd://h:1//a", "etcd://h:1/.a", "file:x", "http://h:1", "etcd://h:1?x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseEtcdPlace(bad).status())) << bad;
  }
}

TEST(EtcdRecord, DamageIsNoticed) {
  const std::string whole = EncodeEtcdRecord(MakeEtcdRecord("some value"));
  EXPECT_EQ(DecodeEtcdRecord(whole, "k")->value, "some value");
  for (size_t n = 0; n < whole.size(); ++n)
    EXPECT_TRUE(absl::IsDataLoss(DecodeEtcdRecord(whole.substr(0, n), "k").status())) << n;
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string bad = whole;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    const bool token = i >= 3 && i < 19;  // any will do
    EXPECT_EQ(DecodeEtcdRecord(bad, "k").ok(), token) << i;
  }
}

TEST(EtcdMetaStore, NobodyThere) {
  EtcdMetaStore::Options options;
  options.endpoints = {"127.0.0.1:1"};
  options.prefix = "test";
  options.patience = absl::Milliseconds(300);
  const absl::Status s = EtcdMetaStore::Open(options).status();
  EXPECT_TRUE(absl::IsUnavailable(s)) << s;
  EXPECT_THAT(std::string(s.message()), HasSubstr("no etcd answers at 127.0.0.1:1"));
  options.prefix = "a//b";
  EXPECT_TRUE(absl::IsInvalidArgument(EtcdMetaStore::Open(options).status()));
}

class EtcdMetaStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!TestEtcd::Installed()) GTEST_SKIP() << "etcd is not installed: see tools/packages.txt";
  }
};

// A key as it stands in etcd.
void PutRaw(TestEtcd& etcd, const std::string& key, const std::string& value) {
  etcdserverpb::PutRequest put;
  put.set_key(key);
  put.set_value(value);
  etcdserverpb::PutResponse response;
  const absl::Status s =
      etcd.client().Call("put", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
        return server.kv->Put(context, put, &response);
      });
  ASSERT_TRUE(s.ok()) << s;
}

TEST_F(EtcdMetaStoreTest, WhatIsNotSherdsIsNoticed) {
  const auto store = OpenAt(*Shared(), "raw");
  PutRaw(*Shared(), "/raw/k", "by hand");
  const absl::Status s = store->Get("k").status();
  EXPECT_TRUE(absl::IsDataLoss(s)) << s;
  EXPECT_THAT(std::string(s.message()), HasSubstr("/raw/k"));
  ASSERT_TRUE(store->Put("k", "again").ok());
  EXPECT_EQ(*store->Get("k"), "again");
}

// Calls whose first answer is lost: each takes effect once, and says so.
TEST_F(EtcdMetaStoreTest, LostAnswers) {
  const auto client = std::make_shared<EtcdClient>(EtcdClient::Options{Shared()->endpoints()});
  EtcdValues values(client, "/lost/");
  const EtcdRecord mine = MakeEtcdRecord("mine");
  // As a first attempt left it.
  PutRaw(*Shared(), "/lost/k", EncodeEtcdRecord(mine));
  etcdserverpb::TxnRequest txn;
  *txn.add_compare() = EtcdChangedAt("/lost/k", 0);
  txn.add_success()->mutable_request_put()->set_key("/lost/k");
  txn.add_failure()->mutable_request_range()->set_key("/lost/k");
  int calls = 0;
  etcdserverpb::TxnResponse response;
  const absl::Status s =
      client->Call("repeat", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
        const grpc::Status answered = server.kv->Txn(context, txn, &response);
        return ++calls == 1 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "lost on its way") : answered;
      });
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_EQ(calls, 2);
  EXPECT_FALSE(response.succeeded());
  const auto found = DecodeEtcdRecord(response.responses(0).response_range().kvs(0).value(), "k");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->token, mine.token);
  EXPECT_TRUE(absl::IsAlreadyExists(values.Create("k", "another", std::nullopt)));
}

TEST_F(EtcdMetaStoreTest, KilledAndRestarted) {
  TestEtcd etcd(1);
  const auto store = OpenAt(etcd);
  Told told;
  const auto watch = store->Watch("k/", told.Callback());
  ASSERT_TRUE(watch.ok());
  ASSERT_TRUE(store->CreateIfAbsent("k/1", "before").ok());
  ASSERT_TRUE(told.Wait("k/1"));
  etcd.Kill(0);
  // A change that waits for the server's return is made then.
  std::thread writer([&] { EXPECT_TRUE(store->CreateIfAbsent("k/2", "while away").ok()); });
  etcd.Start(0);
  writer.join();
  EXPECT_EQ(*store->Get("k/1"), "before");
  EXPECT_EQ(*store->Get("k/2"), "while away");
  EXPECT_TRUE(told.Wait("k/2"));
}

TEST_F(EtcdMetaStoreTest, TroubleIsNamed) {
  TestEtcd etcd(1);
  EtcdMetaStore::Options options = OptionsFor(etcd, "trouble");
  options.patience = absl::Milliseconds(1500);
  const auto store = *EtcdMetaStore::Open(options);
  EXPECT_EQ(store->Trouble(), "");
  etcd.Stop(0);
  // A signal takes a moment.
  absl::Status s;
  for (const absl::Time end = SteadyNow() + kLong; SteadyNow() < end && !absl::IsUnavailable(s);)
    s = store->Get("k").status();
  EXPECT_TRUE(absl::IsUnavailable(s)) << s;
  EXPECT_THAT(store->Trouble(), HasSubstr(etcd.endpoints()[0]));
  etcd.Continue(0);
  etcd.AwaitAnswer();
  absl::Status well;
  for (const absl::Time end = SteadyNow() + kLong; SteadyNow() < end;) {
    well = store->Get("k").status();
    if (absl::IsNotFound(well)) break;
  }
  EXPECT_TRUE(absl::IsNotFound(well)) << well;
  EXPECT_EQ(store->Trouble(), "");
}

TEST_F(EtcdMetaStoreTest, CompactedUnderAWatch) {
  TestEtcd etcd(1);
  const auto store = OpenAt(etcd);
  for (const char* key : {"k/stays", "k/goes", "k/changes"}) ASSERT_TRUE(store->Put(key, "").ok());
  Told told;
  // Its own client, which the test holds up by stopping the server: the watch's stream breaks and what
  // happened meanwhile is compacted before it is back.
  std::atomic<bool> hold{true};
  const auto client = std::make_shared<EtcdClient>(EtcdClient::Options{etcd.endpoints()});
  Notification held;
  const auto watch = EtcdWatch::Start(client, "/test/k/", EtcdPrefixEnd("/test/k/"), SteadyNow() + kLong,
                                      [&](const std::string& key) {
                                        if (key == "/test/k/first") {
                                          held.Notify();
                                          while (hold) std::this_thread::yield();
                                        }
                                        told.Callback()(key);
                                      });
  ASSERT_TRUE(watch.ok());
  ASSERT_TRUE(store->Put("k/first", "").ok());
  ASSERT_TRUE(held.WaitFor(kLong));  // the watch stands still in its callback
  etcd.Kill(0);
  etcd.Start(0);
  etcd.AwaitAnswer();
  ASSERT_TRUE(store->Put("k/changes", "now").ok());
  ASSERT_TRUE(store->Delete("k/goes").ok());
  ASSERT_TRUE(store->Put("k/new", "now").ok());
  etcd.Compact();
  hold = false;
  for (const char* key : {"/test/k/changes", "/test/k/goes", "/test/k/new"})
    EXPECT_TRUE(told.Wait(key)) << key;
  ASSERT_TRUE(store->Put("k/later", "").ok());
  EXPECT_TRUE(told.Wait("/test/k/later"));
  EXPECT_EQ(told.Count("/test/k/stays"), 0);
}

// Writes epochs one after another while the cluster suffers `harm`: each is stored once, and the watch tells
// of all.
void Suffer(TestEtcd& etcd, const std::function<void()>& harm, const std::function<void()>& heal) {
  const auto store = OpenAt(etcd), other = OpenAt(etcd);
  Told told;
  const auto watch = other->Watch("epoch/", told.Callback());
  ASSERT_TRUE(watch.ok());
  Notification gained;
  std::atomic<int> terms{0};
  const auto lead = store->Elect(
      "c", "it",
      [&] {
        if (++terms == 1) gained.Notify();
      },
      [] {});
  ASSERT_TRUE(gained.WaitFor(kLong));
  std::atomic<int> written{0};
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop) {
      const absl::Status s = store->CreateIfAbsent(absl::StrCat("epoch/", written.load()), "x");
      ASSERT_TRUE(s.ok()) << s;
      ++written;
    }
  });
  const auto await_writes = [&](int more) {
    const int until = written + more;
    for (const absl::Time end = SteadyNow() + kLong; written < until && SteadyNow() < end;)
      std::this_thread::yield();
    EXPECT_GE(written.load(), until);
  };
  await_writes(5);
  const absl::Time begun = SteadyNow();
  harm();
  await_writes(5);
  std::printf("five writes %.2f s after the harm began\n", absl::ToDoubleSeconds(SteadyNow() - begun));
  heal();
  await_writes(5);
  stop = true;
  writer.join();
  for (int i = 0; i < written; ++i) {
    EXPECT_TRUE(told.Wait(absl::StrCat("epoch/", i))) << i;
    EXPECT_TRUE(other->Get(absl::StrCat("epoch/", i)).ok()) << i;
  }
  std::printf("terms of leadership: %d\n", terms.load());
}

TEST_F(EtcdMetaStoreTest, LeaderOfThreeKilled) {
  TestEtcd etcd(3);
  int victim = 0;
  Suffer(
      etcd, [&] { etcd.Kill(victim = etcd.Leader()); }, [&] { etcd.Start(victim); });
}

TEST_F(EtcdMetaStoreTest, LeaderOfThreeCutOff) {
  TestEtcd etcd(3);
  int victim = 0;
  Suffer(
      etcd, [&] { etcd.Stop(victim = etcd.Leader()); }, [&] { etcd.Continue(victim); });
}

TEST_F(EtcdMetaStoreTest, SlowAnswers) {
  TestEtcd etcd(1);
  // It stands still for a while again and again, longer than the first attempt of a call waits.
  Suffer(
      etcd,
      [&] {
        etcd.Stop(0);
        EtcdCancel never;
        never.Sleep(absl::Milliseconds(1700));
        etcd.Continue(0);
      },
      [] {});
}

// Leadership when etcd is away for longer than the lease: lost, told, no change gets through, and it stands
// again.
TEST_F(EtcdMetaStoreTest, LeadershipEndsWithItsLease) {
  TestEtcd etcd(1);
  const auto store = OpenAt(etcd);
  Told told;
  const auto tell = [&](const std::string& what) { return [&told, what] { told.Callback()(what); }; };
  const auto lead = store->Elect("c", "it", tell("gained"), tell("lost"));
  ASSERT_TRUE(told.Wait("gained"));
  etcd.Stop(0);
  ASSERT_TRUE(told.Wait("lost"));
  EXPECT_FALSE((*lead)->held());
  EXPECT_TRUE(absl::IsAborted((*lead)->store().CreateIfAbsent("k", "stale")));
  etcd.Continue(0);
  ASSERT_TRUE(told.Wait("gained", 2));
  EXPECT_TRUE((*lead)->held());
  EXPECT_TRUE((*lead)->store().CreateIfAbsent("k", "fresh").ok());
}

// A change of a leader whose key has gone, while it does not know yet.
TEST_F(EtcdMetaStoreTest, StaleLeaderChangesNothing) {
  const auto store = OpenAt(*Shared(), "stale");
  const auto client = std::make_shared<EtcdClient>(EtcdClient::Options{Shared()->endpoints()});
  EtcdValues values(client, "/stale/");
  Notification gained;
  EtcdCandidacy it(
      client, "/stale/.election/c/", "it", absl::Minutes(5), [&] { gained.Notify(); }, [] {});
  ASSERT_TRUE(gained.WaitFor(kLong));
  const EtcdValues::Guard guard = it.term();
  ASSERT_TRUE(values.Create("k", "of the leader", guard).ok());
  ASSERT_TRUE(EndLease(Shared()->client(), "/stale/.election/c/"));
  EXPECT_TRUE(it.held()) << "nobody has told it";
  EXPECT_TRUE(absl::IsAborted(values.Create("other", "stale", guard)));
  EXPECT_TRUE(absl::IsAborted(values.Put("k", "stale", guard)));
  EXPECT_TRUE(absl::IsAborted(values.Delete("k", guard)));
  EXPECT_EQ(*store->Get("k"), "of the leader");
}

}  // namespace
}  // namespace sherd::runtime

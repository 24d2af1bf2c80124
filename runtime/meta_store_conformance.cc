#include "runtime/meta_store_conformance.h"

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"

namespace sherd::runtime {
namespace {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MetaStoreConformance);

TEST_P(MetaStoreConformance, PutGetDelete) {
  EXPECT_TRUE(absl::IsNotFound(a_->Get("k").status()));
  EXPECT_TRUE(absl::IsNotFound(a_->Delete("k")));
  ASSERT_TRUE(a_->Put("k", "one").ok());
  EXPECT_EQ(*b_->Get("k"), "one");
  ASSERT_TRUE(b_->Put("k", "").ok());
  EXPECT_EQ(*a_->Get("k"), "");
  std::string bytes(100000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7);
  ASSERT_TRUE(a_->Put("k", bytes).ok());
  EXPECT_EQ(*b_->Get("k"), bytes);
  ASSERT_TRUE(b_->Delete("k").ok());
  EXPECT_TRUE(absl::IsNotFound(a_->Get("k").status()));
}

TEST_P(MetaStoreConformance, CreateIfAbsent) {
  ASSERT_TRUE(a_->CreateIfAbsent("epoch/1", "first").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(b_->CreateIfAbsent("epoch/1", "second")));
  EXPECT_EQ(*b_->Get("epoch/1"), "first");
  ASSERT_TRUE(a_->Delete("epoch/1").ok());
  EXPECT_TRUE(b_->CreateIfAbsent("epoch/1", "third").ok());
}

TEST_P(MetaStoreConformance, ListIsSortedAndFiltered) {
  EXPECT_TRUE(a_->List("")->empty());
  for (const char* key : {"b", "a/c", "a", "a-b", "a/b/c", "a.b"}) ASSERT_TRUE(a_->Put(key, "").ok());
  EXPECT_EQ(*b_->List(""), (std::vector<std::string>{"a", "a-b", "a.b", "a/b/c", "a/c", "b"}));
  EXPECT_EQ(*b_->List("a/"), (std::vector<std::string>{"a/b/c", "a/c"}));
  EXPECT_TRUE(b_->List("none")->empty());
}

TEST_P(MetaStoreConformance, BadKeysAndValues) {
  for (const std::string& key :
       {std::string(), std::string("/"), std::string("a/"), std::string("/a"), std::string("a//b"),
        std::string("."), std::string(".."), std::string("a/../b"), std::string(".hidden"),
        std::string("a b"), std::string("a+b"), std::string("a\0", 2), std::string("\xff"),
        std::string(201, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(a_->Get(key).status())) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(a_->Put(key, ""))) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(a_->CreateIfAbsent(key, ""))) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(a_->Delete(key))) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(a_->Elect(
                                              key, "", [] {}, [] {})
                                            .status()))
        << key;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(a_->Elect(
                                            "a/b", "", [] {}, [] {})
                                          .status()));
  EXPECT_TRUE(absl::IsInvalidArgument(a_->Put("k", std::string(MetaStore::kMaxValueBytes + 1, 'x'))));
  EXPECT_TRUE(a_->Put(std::string(200, 'a'), "").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(a_->Leader("a/b").status()));
}

TEST_P(MetaStoreConformance, OneOfManyCreatorsWins) {
  constexpr int kThreads = 4, kKeys = 50;
  std::vector<std::atomic<int>> winners(kKeys);
  std::vector<std::atomic<int>> winner(kKeys);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      MetaStore& store = t % 2 == 0 ? *a_ : *b_;
      for (int k = 0; k < kKeys; ++k) {
        absl::Status s = store.CreateIfAbsent(absl::StrCat("race/", k), absl::StrCat(t));
        ASSERT_TRUE(s.ok() || absl::IsAlreadyExists(s)) << s;
        if (s.ok()) {
          ++winners[k];
          winner[k] = t;
        } else {
          EXPECT_TRUE(store.Get(absl::StrCat("race/", k)).ok()) << "who lost can read what won";
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (int k = 0; k < kKeys; ++k) {
    EXPECT_EQ(winners[k], 1);
    EXPECT_EQ(*a_->Get(absl::StrCat("race/", k)), absl::StrCat(winner[k].load()));
  }
}

TEST_P(MetaStoreConformance, ReadersSeeWholeValues) {
  ASSERT_TRUE(a_->Put("k", std::string(5000, 'a')).ok());
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i)
      EXPECT_TRUE(a_->Put("k", std::string(5000 + i, static_cast<char>('a' + i % 26))).ok());
    stop = true;
  });
  while (!stop) {
    absl::StatusOr<std::string> value = b_->Get("k");
    ASSERT_TRUE(value.ok()) << value.status();
    ASSERT_EQ(value->find_first_not_of((*value)[0]), std::string::npos);
  }
  writer.join();
}

TEST_P(MetaStoreConformance, WatchTellsChanges) {
  Told told;
  ASSERT_TRUE(a_->Put("w/old", "1").ok());
  auto watch = a_->Watch("w/", told.Callback());
  ASSERT_TRUE(watch.ok()) << watch.status();
  ASSERT_TRUE(b_->CreateIfAbsent("w/new", "1").ok());
  EXPECT_TRUE(told.Wait("w/new"));
  ASSERT_TRUE(b_->Put("w/old", "2").ok());
  EXPECT_TRUE(told.Wait("w/old"));
  ASSERT_TRUE(b_->Put("x", "2").ok());
  ASSERT_TRUE(a_->Delete("w/new").ok());
  EXPECT_TRUE(told.Wait("w/new", 2));
  EXPECT_EQ(told.Count("x"), 0);
  watch->reset();
  ASSERT_TRUE(b_->Put("w/late", "1").ok());
  EXPECT_EQ(told.Count("w/late"), 0);
}

TEST_P(MetaStoreConformance, WatchCallbackMayChangeTheStore) {
  Told told;
  auto record = told.Callback();
  auto watch = a_->Watch("", [&](const std::string& key) {
    record(key);
    if (key == "one") {
      EXPECT_TRUE(a_->Put("two", *a_->Get("one")).ok());
    }
  });
  ASSERT_TRUE(watch.ok());
  ASSERT_TRUE(b_->Put("one", "x").ok());
  EXPECT_TRUE(told.Wait("two"));
  EXPECT_EQ(*b_->Get("two"), "x");
}

TEST_P(MetaStoreConformance, WatchSeesABurstByManyWriters) {
  Told told;
  auto watch = a_->Watch("burst/", told.Callback());
  ASSERT_TRUE(watch.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) EXPECT_TRUE(b_->Put(absl::StrCat("burst/", t, "-", i), "x").ok());
    });
  }
  for (std::thread& t : threads) t.join();
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(told.Wait(absl::StrCat("burst/", t, "-", i)));
  }
}

TEST_P(MetaStoreConformance, LeadershipPassesOn) {
  Notification a_leads, b_leads;
  EXPECT_TRUE(absl::IsNotFound(a_->Leader("c").status()));
  auto a = a_->Elect(
      "c", "host-a", [&] { a_leads.Notify(); }, [] {});
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(a_leads.WaitFor(kLong));
  EXPECT_TRUE((*a)->held());
  auto b = b_->Elect(
      "c", "host-b", [&] { b_leads.Notify(); }, [] {});
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(*b_->Leader("c"), "host-a");
  EXPECT_FALSE((*b)->held());
  Notification other;
  auto d = b_->Elect(
      "another", "host-b", [&] { other.Notify(); }, [] {});
  EXPECT_TRUE(other.WaitFor(kLong)) << "elections are independent";
  EXPECT_FALSE(b_leads.HasBeenNotified());
  a->reset();
  ASSERT_TRUE(b_leads.WaitFor(kLong));
  EXPECT_TRUE((*b)->held());
  EXPECT_EQ(*a_->Leader("c"), "host-b");
  b->reset();
  EXPECT_TRUE(absl::IsNotFound(a_->Leader("c").status()));
}

TEST_P(MetaStoreConformance, WithdrawnCandidateNeverLeads) {
  Notification a_leads, c_leads;
  std::atomic<int> b_calls{0};
  auto a = a_->Elect(
      "c", "a", [&] { a_leads.Notify(); }, [] {});
  ASSERT_TRUE(a_leads.WaitFor(kLong));
  auto b = b_->Elect(
      "c", "b", [&] { ++b_calls; }, [] {});
  ASSERT_TRUE(b.ok());
  b->reset();
  auto c = b_->Elect(
      "c", "c", [&] { c_leads.Notify(); }, [] {});
  a->reset();
  EXPECT_TRUE(c_leads.WaitFor(kLong));
  EXPECT_EQ(b_calls, 0);
}

TEST_P(MetaStoreConformance, AtMostOneLeads) {
  std::atomic<int> leading{0}, worst{0}, terms{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        Notification mine;
        auto l = (t % 2 == 0 ? a_ : b_)
                     ->Elect(
                         "c", absl::StrCat(t),
                         [&] {
                           if (++leading > 1) ++worst;
                           mine.Notify();
                         },
                         [] {});
        ASSERT_TRUE(l.ok());
        ASSERT_TRUE(mine.WaitFor(kLong));
        ++terms;
        --leading;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(worst, 0);
  EXPECT_EQ(terms, 80);
}

TEST_P(MetaStoreConformance, LargeValues) {
  std::string bytes(MetaStore::kMaxValueBytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 + (i >> 13));
  ASSERT_TRUE(a_->CreateIfAbsent("large", bytes).ok());
  EXPECT_TRUE(*b_->Get("large") == bytes);
  EXPECT_TRUE(absl::IsAlreadyExists(b_->CreateIfAbsent("large", bytes)));
  const std::string other = bytes.substr(5, (1 << 20) + 1);
  ASSERT_TRUE(b_->Put("large", other).ok());
  EXPECT_TRUE(*a_->Get("large") == other);
  EXPECT_EQ(*a_->List(""), std::vector<std::string>{"large"});
  ASSERT_TRUE(a_->Put("large", "small").ok());
  EXPECT_EQ(*b_->Get("large"), "small");
  ASSERT_TRUE(a_->Put("large", bytes).ok());
  ASSERT_TRUE(b_->Delete("large").ok());
  EXPECT_TRUE(absl::IsNotFound(a_->Get("large").status()));
}

TEST_P(MetaStoreConformance, OnlyTheLeaderChangesItsStore) {
  Notification a_leads, b_leads;
  auto a = a_->Elect(
      "c", "a", [&] { a_leads.Notify(); }, [] {});
  ASSERT_TRUE(a_leads.WaitFor(kLong));
  auto b = b_->Elect(
      "c", "b", [&] { b_leads.Notify(); }, [] {});
  EXPECT_TRUE(absl::IsAborted((*b)->store().CreateIfAbsent("k", "of b")));
  EXPECT_TRUE(absl::IsAborted((*b)->store().Put("k", "of b")));
  ASSERT_TRUE((*a)->store().CreateIfAbsent("k", "of a").ok());
  EXPECT_TRUE(absl::IsAborted((*b)->store().Delete("k")));
  EXPECT_EQ(*(*b)->store().Get("k"), "of a");
  ASSERT_TRUE((*a)->store().Put("k", "of a again").ok());
  EXPECT_TRUE(absl::IsAlreadyExists((*a)->store().CreateIfAbsent("k", "")));
  a->reset();
  ASSERT_TRUE(b_leads.WaitFor(kLong));
  EXPECT_EQ(*(*b)->store().Get("k"), "of a again");
  EXPECT_TRUE((*b)->store().Delete("k").ok());
}

TEST_P(MetaStoreConformance, WhoLosesIsToldAndStandsAgain) {
  // How often each gained and lost.
  Told told;
  const auto tell = [&](const std::string& what) { return [&told, what] { told.Callback()(what); }; };
  auto a = a_->Elect("c", "a", tell("a gained"), tell("a lost"));
  ASSERT_TRUE(told.Wait("a gained"));
  if (!world_->Depose("c")) GTEST_SKIP() << "a leadership in files is never lost";
  ASSERT_TRUE(told.Wait("a lost"));
  ASSERT_TRUE(told.Wait("a gained", 2));
  auto b = b_->Elect("c", "b", tell("b gained"), tell("b lost"));
  // Until b stands nobody but a can win.
  int lost = told.Count("a lost");
  for (; told.Count("b gained") == 0; ++lost) {
    ASSERT_TRUE(world_->Depose("c"));
    ASSERT_TRUE(told.Wait("a lost", lost + 1));
    ASSERT_TRUE(told.WaitAny({{"a gained", lost + 2}, {"b gained", 1}}));
  }
  EXPECT_TRUE((*b)->held());
  EXPECT_FALSE((*a)->held());
  EXPECT_TRUE(absl::IsAborted((*a)->store().Put("k", "of a")));
  EXPECT_TRUE((*b)->store().Put("k", "of b").ok());
  EXPECT_EQ(*a_->Leader("c"), "b");
  const int before = told.Count("a gained");
  b->reset();
  EXPECT_TRUE(told.Wait("a gained", before + 1));
  EXPECT_TRUE((*a)->held());
}

}  // namespace
}  // namespace sherd::runtime

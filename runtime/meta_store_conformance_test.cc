// What every MetaStore promises, on every implementation; then what is particular to files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/file_meta_store.h"
#include "runtime/memory_meta_store.h"
#include "runtime/mutex.h"
#include "runtime/temp_name.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;
constexpr absl::Duration kLong = absl::Seconds(60);

// Keys a watch told of, to be waited for.
class Told {
 public:
  MetaStore::WatchCallback Callback() {
    return [this](const std::string& key) {
      MutexLock lock(mu_);
      ++keys_[key];
      changed_.SignalAll();
    };
  }
  // Returns when `key` was told at least `times` times.
  bool Wait(const std::string& key, int times = 1) {
    MutexLock lock(mu_);
    while (keys_[key] < times) {
      if (!changed_.WaitFor(mu_, kLong)) return false;
    }
    return true;
  }
  int Count(const std::string& key) {
    MutexLock lock(mu_);
    return keys_[key];
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::map<std::string, int> keys_ ABSL_GUARDED_BY(mu_);
};

class MetaStoreConformance : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<MetaStore> Open() {
    if (!GetParam()) return std::make_unique<MemoryMetaStore>(world_);
    absl::StatusOr<std::unique_ptr<FileMetaStore>> store = FileMetaStore::Open(root_.path() + "/meta");
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  TestRoot root_;
  std::shared_ptr<MemoryMetaWorld> world_ = MakeMemoryMetaWorld();
  std::unique_ptr<MetaStore> a_ = Open(), b_ = Open();
};

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
    EXPECT_TRUE(absl::IsInvalidArgument(a_->Elect(key, "", [] {}).status())) << key;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(a_->Elect("a/b", "", [] {}).status()));
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
  auto a = a_->Elect("c", "host-a", [&] { a_leads.Notify(); });
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(a_leads.WaitFor(kLong));
  EXPECT_TRUE((*a)->held());
  auto b = b_->Elect("c", "host-b", [&] { b_leads.Notify(); });
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(*b_->Leader("c"), "host-a");
  EXPECT_FALSE((*b)->held());
  Notification other;
  auto d = b_->Elect("another", "host-b", [&] { other.Notify(); });
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
  auto a = a_->Elect("c", "a", [&] { a_leads.Notify(); });
  ASSERT_TRUE(a_leads.WaitFor(kLong));
  auto b = b_->Elect("c", "b", [&] { ++b_calls; });
  ASSERT_TRUE(b.ok());
  b->reset();
  auto c = b_->Elect("c", "c", [&] { c_leads.Notify(); });
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
        auto l = (t % 2 == 0 ? a_ : b_)->Elect("c", absl::StrCat(t), [&] {
          if (++leading > 1) ++worst;
          mine.Notify();
        });
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

INSTANTIATE_TEST_SUITE_P(All, MetaStoreConformance, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "File" : "Memory"; });

class FileMetaStoreTest : public ::testing::Test {
 protected:
  std::string File(const std::string& name) const { return root_.path() + "/" + name; }
  TestRoot root_;
  std::unique_ptr<FileMetaStore> store_ = *FileMetaStore::Open(root_.path());
};

TEST_F(FileMetaStoreTest, DamageIsNoticed) {
  ASSERT_TRUE(store_->Put("dir/k", "some value").ok());
  const std::string path = File("dir+k");
  std::string whole;
  std::getline(std::ifstream(path, std::ios::binary), whole, '\xff');
  ASSERT_EQ(whole.size(), 26u);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string bad = whole;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bad;
    absl::Status status = store_->Get("dir/k").status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << i << " " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  for (size_t n : {size_t{0}, size_t{5}, size_t{16}, whole.size() - 1}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, n);
    EXPECT_TRUE(absl::IsDataLoss(store_->Get("dir/k").status())) << n;
  }
  ASSERT_TRUE(store_->Put("dir/k", "again").ok());
  EXPECT_EQ(*store_->Get("dir/k"), "again");
  ASSERT_EQ(::truncate(path.c_str(), int64_t{1} << 40), 0);
  EXPECT_TRUE(absl::IsDataLoss(store_->Get("dir/k").status())) << "a huge file must not be read into memory";
}

TEST_F(FileMetaStoreTest, SweepsWhatKilledWritersLeft) {
  TestProcess writer([&] {
    std::ofstream(File(TempName("k"))) << "half";
    return 0;
  });
  EXPECT_EQ(writer.Join(), 0);
  UniqueFd dir(::open(root_.path().c_str(), O_RDONLY | O_DIRECTORY));
  EXPECT_EQ(ListDir(dir.get())->size(), 1u);
  EXPECT_TRUE(store_->List("")->empty());
  ASSERT_TRUE(FileMetaStore::Open(root_.path()).ok());
  EXPECT_TRUE(ListDir(dir.get())->empty());
}

TEST_F(FileMetaStoreTest, DirectoryMustBePrivate) {
  ASSERT_EQ(::chmod(root_.path().c_str(), 0777), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(FileMetaStore::Open(root_.path()).status()));
  EXPECT_TRUE(absl::IsNotFound(FileMetaStore::Open(File("none/deeper")).status()));
}

TEST_F(FileMetaStoreTest, OneOfManyProcessesWins) {
  constexpr int kProcesses = 4, kKeys = 50;
  std::vector<std::unique_ptr<TestProcess>> processes;
  for (int p = 0; p < kProcesses; ++p) {
    processes.push_back(std::make_unique<TestProcess>([&, p] {
      auto store = FileMetaStore::Open(root_.path());
      if (!store.ok()) return 1;
      for (int k = 0; k < kKeys; ++k) {
        absl::Status s = (*store)->CreateIfAbsent(absl::StrCat("epoch/", k), absl::StrCat(p));
        if (!s.ok() && !absl::IsAlreadyExists(s)) return 2;
        if (s.ok() && !(*store)->CreateIfAbsent(absl::StrCat("won/", k, "-", p), "").ok()) return 3;
      }
      return 0;
    }));
  }
  for (auto& p : processes) EXPECT_EQ(p->Join(), 0);
  for (int k = 0; k < kKeys; ++k) {
    absl::StatusOr<std::string> winner = store_->Get(absl::StrCat("epoch/", k));
    ASSERT_TRUE(winner.ok());
    EXPECT_EQ(*store_->List(absl::StrCat("won/", k, "-")),
              std::vector<std::string>{absl::StrCat("won/", k, "-", *winner)});
  }
}

// These two fork children that start threads, which ThreadSanitizer allows only while this process has had no
// thread but one: the second comes last.
TEST_F(FileMetaStoreTest, DeadLeadersNameIsNotShown) {
  TestProcess leader([&] {
    Notification leads;
    auto store = FileMetaStore::Open(root_.path());
    auto lead = (*store)->Elect("c", "victim", [&] { leads.Notify(); });
    leads.Wait();
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(leader.Join(), -SIGKILL);
  EXPECT_TRUE(absl::IsNotFound(store_->Leader("c").status()));
}

TEST_F(FileMetaStoreTest, KilledLeaderIsFollowed) {
  TestSignal leads;
  TestProcess leader([&] {
    auto store = FileMetaStore::Open(root_.path());
    auto lead = (*store)->Elect("c", "victim", [&] { leads.Send(); });
    ::pause();
    return 0;
  });
  ASSERT_TRUE(leads.Receive());
  EXPECT_EQ(*store_->Leader("c"), "victim");
  Notification mine;
  auto successor = store_->Elect("c", "successor", [&] { mine.Notify(); });
  EXPECT_FALSE((*successor)->held());
  const absl::Time killed = absl::Now();
  leader.Kill();
  ASSERT_TRUE(mine.WaitFor(kLong));
  std::printf("leadership passed on %.3f ms after the kill\n",
              absl::ToDoubleMilliseconds(absl::Now() - killed));
  EXPECT_EQ(*store_->Leader("c"), "successor");
  EXPECT_EQ(leader.Join(), -SIGKILL);
}

}  // namespace
}  // namespace sherd::runtime

// MetaStore in files and in memory: what every store promises, then what is particular to files.
#include "runtime/meta_store_conformance.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/file_meta_store.h"
#include "runtime/memory_meta_store.h"
#include "runtime/mutex.h"
#include "runtime/temp_name.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

class FileWorld final : public StoreWorld {
 public:
  std::unique_ptr<MetaStore> Open() override { return *FileMetaStore::Open(root_.path() + "/meta"); }

 private:
  TestRoot root_;
};

class MemoryWorld final : public StoreWorld {
 public:
  std::unique_ptr<MetaStore> Open() override { return std::make_unique<MemoryMetaStore>(world_); }
  bool Depose(const std::string& election) override { return LoseLeadership(*world_, election), true; }

 private:
  std::shared_ptr<MemoryMetaWorld> world_ = MakeMemoryMetaWorld();
};

INSTANTIATE_TEST_SUITE_P(All, MetaStoreConformance,
                         ::testing::Values(StoreKind{"File", std::make_unique<FileWorld>},
                                           StoreKind{"Memory", std::make_unique<MemoryWorld>}),
                         StoreKindName);

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
    auto lead = (*store)->Elect(
        "c", "victim", [&] { leads.Notify(); }, [] {});
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
    auto lead = (*store)->Elect(
        "c", "victim", [&] { leads.Send(); }, [] {});
    ::pause();
    return 0;
  });
  ASSERT_TRUE(leads.Receive());
  EXPECT_EQ(*store_->Leader("c"), "victim");
  Notification mine;
  auto successor = store_->Elect(
      "c", "successor", [&] { mine.Notify(); }, [] {});
  EXPECT_FALSE((*successor)->held());
  const absl::Time killed = SteadyNow();
  leader.Kill();
  ASSERT_TRUE(mine.WaitFor(kLong));
  std::printf("leadership passed on %.3f ms after the kill\n",
              absl::ToDoubleMilliseconds(SteadyNow() - killed));
  EXPECT_EQ(*store_->Leader("c"), "successor");
  EXPECT_EQ(leader.Join(), -SIGKILL);
}

}  // namespace
}  // namespace sherd::runtime

// Whose a store is. On files: the rules are the same in etcd.
#include "runtime/etcd/job_store.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/dir_tree.h"
#include "runtime/etcd/test_etcd.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

TEST(StorePlace, Parses) {
  EXPECT_EQ(ParseStorePlace("")->kind, StorePlace::Kind::kJobDir);
  EXPECT_EQ(ParseStorePlace("file:a/b")->directory, "a/b");
  EXPECT_EQ(ParseStorePlace("etcd://h:1/p")->etcd.prefix, "p");
  for (const char* bad : {"file:", "etcd:h:1", "etcd://h", "zookeeper://h:1", "x"}) {
    const absl::Status s = ParseStorePlace(bad).status();
    EXPECT_TRUE(absl::IsInvalidArgument(s)) << bad;
    EXPECT_THAT(std::string(s.message()), HasSubstr("--store")) << bad;
  }
}

// On each kind of place.
void OneRunAtATime(const TestRoot& root, const StorePlace& place) {
  absl::StatusOr<JobDir> dir = JobDir::Create(root.path(), "job");
  ASSERT_TRUE(dir.ok()) << dir.status();
  absl::StatusOr<std::unique_ptr<MetaStore>> first = OpenJobStore(place, *dir);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE((*first)->Put("epoch/1", "x").ok());
  ASSERT_TRUE(OpenJobStore(place, *dir).ok()) << "another server of the run";

  TestRoot elsewhere("/dev/shm");
  absl::StatusOr<JobDir> other = JobDir::Create(elsewhere.path(), "job");
  ASSERT_TRUE(other.ok()) << other.status();
  const absl::Status refused = OpenJobStore(place, *other).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(dir->path()));
  EXPECT_EQ(*(*first)->Get("epoch/1"), "x");

  // It is killed, and its memory removed: what it stored is of no use.
  ASSERT_TRUE(*dir->RemoveOwn());
  absl::StatusOr<std::unique_ptr<MetaStore>> second = OpenJobStore(place, *other);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(absl::IsNotFound((*second)->Get("epoch/1").status()));

  EXPECT_TRUE(ClearJobStore(**second, "another uuid").ok());
  EXPECT_FALSE((*second)->List("")->empty());
  EXPECT_TRUE(ClearJobStore(**second, other->uuid()).ok());
  EXPECT_TRUE((*second)->List("")->empty());
  ASSERT_TRUE((*second)->Put("something", "else").ok());
  const absl::Status foreign = OpenJobStore(place, *other).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(foreign)) << foreign;
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("something"));
  ASSERT_TRUE(*other->RemoveOwn());
}

TEST(JobStore, OneRunAtATimeInFiles) {
  TestRoot root("/dev/shm"), files;
  OneRunAtATime(root, *ParseStorePlace(absl::StrCat("file:", files.path(), "/store")));
}

TEST(JobStore, OneRunAtATimeInEtcd) {
  if (!TestEtcd::Installed()) GTEST_SKIP() << "etcd is not installed: see tools/packages.txt";
  TestRoot root("/dev/shm");
  TestEtcd etcd(1);
  OneRunAtATime(root, *ParseStorePlace(absl::StrCat("etcd://", etcd.endpoints()[0], "/prod")));
}

}  // namespace
}  // namespace sherd::runtime

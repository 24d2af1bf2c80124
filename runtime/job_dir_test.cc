#include "runtime/job_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <optional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

class JobDirTest : public ::testing::Test {
 protected:
  std::string Base() const { return absl::StrCat(root_.path(), "/sherd-", ::geteuid()); }
  bool Exists(const std::string& path) const { return ::access(path.c_str(), F_OK) == 0; }
  TestRoot root_{"/dev/shm"};
};

TEST(ShmRoot, IsOfTheEnvironmentOrTheDefault) {
  EXPECT_EQ(*ShmRoot(nullptr), kDefaultShmRoot);
  EXPECT_EQ(*ShmRoot(""), kDefaultShmRoot);
  EXPECT_EQ(*ShmRoot("/run/shm"), "/run/shm");
  EXPECT_TRUE(absl::IsInvalidArgument(ShmRoot("shm").status()));
}

TEST_F(JobDirTest, CreateListRemoveOwn) {
  absl::StatusOr<JobDir> dir = JobDir::Create(root_.path(), "gpt");
  ASSERT_TRUE(dir.ok()) << dir.status();
  EXPECT_EQ(dir->job(), "gpt");
  EXPECT_EQ(dir->path(), Base() + "/gpt-" + dir->uuid());
  EXPECT_NE(dir->id(), 0u);
  struct stat st;
  ASSERT_EQ(::stat(dir->path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700);
  std::ofstream(dir->path() + "/file") << std::string(10000, 'x');

  auto jobs = JobDir::List(root_.path());
  ASSERT_TRUE(jobs.ok());
  ASSERT_EQ(jobs->size(), 1u);
  EXPECT_EQ((*jobs)[0].job, "gpt");
  EXPECT_TRUE((*jobs)[0].live);
  EXPECT_EQ((*jobs)[0].bytes, 12288);

  absl::StatusOr<bool> removed = dir->RemoveOwn();
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_TRUE(*removed);
  EXPECT_FALSE(Exists(Base())) << "nothing may be left";
}

TEST_F(JobDirTest, NameInUseOnlyWhileLive) {
  std::optional<JobDir> first = *JobDir::Create(root_.path(), "a");
  absl::StatusOr<JobDir> second = JobDir::Create(root_.path(), "a");
  EXPECT_EQ(second.status(),
            absl::AlreadyExistsError("job name a is in use (directory " + first->path() + ")"));
  EXPECT_TRUE(JobDir::Create(root_.path(), "b").ok());
  const std::string path = first->path();
  first.reset();  // as if killed: the directory stays
  EXPECT_TRUE(Exists(path));
  absl::StatusOr<JobDir> third = JobDir::Create(root_.path(), "a");
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_NE(third->path(), path);
  // "a" must not be mistaken for the job "a-b".
  EXPECT_TRUE(JobDir::Create(root_.path(), "a-b").ok());
}

TEST_F(JobDirTest, MembersKeepItAliveReadersDoNot) {
  std::optional<JobDir> first = *JobDir::Create(root_.path(), "a");
  const std::string path = first->path();
  std::optional<JobDir> member = *JobDir::Open(path, JobDir::Hold::kMember);
  absl::StatusOr<JobDir> reader = JobDir::Open(path + "/", JobDir::Hold::kNone);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->id(), first->id());
  EXPECT_EQ(*first->RemoveOwn(), false);
  EXPECT_TRUE(absl::IsFailedPrecondition(JobDir::Remove(path)));
  first.reset();
  EXPECT_TRUE((*JobDir::List(root_.path()))[0].live);
  EXPECT_TRUE(JobDir::Gc(root_.path())->empty());
  member.reset();
  EXPECT_FALSE((*JobDir::List(root_.path()))[0].live);
  EXPECT_TRUE(JobDir::Remove(path).ok());
  EXPECT_TRUE(absl::IsNotFound(JobDir::Open(path, JobDir::Hold::kMember).status()));
  EXPECT_TRUE(absl::IsNotFound(JobDir::Remove(path)));
}

TEST_F(JobDirTest, RefusedRemoveOwnKeepsTheHold) {
  std::optional<JobDir> first = *JobDir::Create(root_.path(), "a");
  std::optional<JobDir> member = *JobDir::Open(first->path(), JobDir::Hold::kMember);
  ASSERT_EQ(*first->RemoveOwn(), false);
  member.reset();
  EXPECT_TRUE(JobDir::Gc(root_.path())->empty()) << "the first member still lives";
}

TEST_F(JobDirTest, KilledProcessLeavesADeadJob) {
  TestSignal ready;
  TestProcess process([&] {
    absl::StatusOr<JobDir> dir = JobDir::Create(root_.path(), "killed");
    if (!dir.ok()) return 1;
    std::ofstream(dir->path() + "/segment") << std::string(100000, 'x');
    ready.Send();
    ::pause();
    return 0;
  });
  ASSERT_TRUE(ready.Receive());
  EXPECT_TRUE((*JobDir::List(root_.path()))[0].live);
  EXPECT_TRUE(JobDir::Gc(root_.path())->empty());
  process.Kill();
  EXPECT_EQ(process.Join(), -SIGKILL);
  auto removed = JobDir::Gc(root_.path());
  ASSERT_TRUE(removed.ok()) << removed.status();
  ASSERT_EQ(removed->size(), 1u);
  EXPECT_GE((*removed)[0].bytes, 100000);
  EXPECT_FALSE(Exists(Base()));
}

TEST_F(JobDirTest, GcTouchesNothingForeign) {
  absl::StatusOr<JobDir> live = JobDir::Create(root_.path(), "live");
  std::string dead_path;
  {
    absl::StatusOr<JobDir> dead = JobDir::Create(root_.path(), "dead");
    dead_path = dead->path();
    ASSERT_EQ(::mkdir((dead_path + "/sub").c_str(), 0700), 0);
    std::ofstream(dead_path + "/sub/file") << "x";
    std::ofstream(root_.path() + "/precious") << "x";
    ASSERT_EQ(::symlink(root_.path().c_str(), (dead_path + "/link").c_str()), 0);
    ASSERT_EQ(::symlink(root_.path().c_str(), (dead_path + "/sub/link").c_str()), 0);
  }
  const std::string uuid = "-01234567-89ab-4def-8123-456789abcdef";
  std::ofstream(Base() + "/notes.txt") << "x";
  std::ofstream(Base() + "/file" + uuid) << "x";             // a file of a job's name
  ASSERT_EQ(::mkdir((Base() + "/other").c_str(), 0700), 0);  // not a job's name
  ASSERT_EQ(::mkdir((Base() + "/X-01234567-89AB-4def-8123-456789abcdef").c_str(), 0700),
            0);  // nor this: upper case
  ASSERT_EQ(::symlink(live->path().c_str(), (Base() + "/link" + uuid).c_str()), 0);
  auto removed = JobDir::Gc(root_.path());
  ASSERT_TRUE(removed.ok()) << removed.status();
  ASSERT_EQ(removed->size(), 1u);
  EXPECT_EQ((*removed)[0].path, dead_path);
  for (const char* kept : {"/notes.txt", "/other", "/X-01234567-89AB-4def-8123-456789abcdef"}) {
    EXPECT_TRUE(Exists(Base() + kept)) << kept;
  }
  EXPECT_TRUE(Exists(Base() + "/file" + uuid));
  EXPECT_TRUE(Exists(Base() + "/link" + uuid));
  EXPECT_TRUE(Exists(live->path()));
  EXPECT_TRUE(Exists(root_.path() + "/precious"));
  // A stray file of the right form is not a live job.
  EXPECT_TRUE(JobDir::Create(root_.path(), "file").ok());
}

TEST_F(JobDirTest, BadNames) {
  for (const std::string& name : {std::string(), std::string(41, 'a'), std::string("a/b"), std::string("a b"),
                                  std::string("\xc3\xa9"), std::string("a\0b", 3)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(JobDir::Create(root_.path(), name).status())) << name;
  }
  EXPECT_TRUE(JobDir::Create(root_.path(), std::string(40, 'z')).ok());
  for (const char* path : {"", "/", "/x", "relative", "/dev/shm/sherd-0/job"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(JobDir::Open(path, JobDir::Hold::kNone).status())) << path;
  }
}

TEST_F(JobDirTest, BaseMustBePrivate) {
  ASSERT_EQ(::mkdir(Base().c_str(), 0700), 0);
  ASSERT_EQ(::chmod(Base().c_str(), 0755), 0);
  absl::Status open = JobDir::Create(root_.path(), "a").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(open));
  EXPECT_THAT(std::string(open.message()),
              ::testing::AllOf(HasSubstr(Base()), HasSubstr("0755"), HasSubstr("chmod")));
  ASSERT_EQ(::rmdir(Base().c_str()), 0);

  ASSERT_EQ(::symlink("/tmp", Base().c_str()), 0);
  absl::Status link = JobDir::Create(root_.path(), "a").status();
  EXPECT_THAT(std::string(link.message()), ::testing::AllOf(HasSubstr("is a link"), HasSubstr("owner uid")));
  ASSERT_EQ(::unlink(Base().c_str()), 0);

  std::ofstream(Base()) << "x";
  EXPECT_THAT(std::string(JobDir::Create(root_.path(), "a").status().message()),
              HasSubstr("not a directory"));
  EXPECT_FALSE(JobDir::List(root_.path()).ok());
  ASSERT_EQ(::unlink(Base().c_str()), 0);

  EXPECT_TRUE(absl::IsNotFound(JobDir::Create(root_.path() + "/none", "a").status()));
  EXPECT_TRUE(JobDir::List(root_.path() + "/none")->empty());
}

TEST_F(JobDirTest, AnotherUsersDirectory) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a directory away";
  ASSERT_EQ(::mkdir(Base().c_str(), 0700), 0);
  ASSERT_EQ(::chown(Base().c_str(), 12, 12), 0);
  absl::Status status = JobDir::Create(root_.path(), "a").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("owned by uid 12, not by uid 0"));
}

// Threads make, leave and collect jobs; the base directory comes and goes beneath them.
TEST_F(JobDirTest, CreationRacesWithRemoval) {
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        absl::StatusOr<JobDir> dir = JobDir::Create(root_.path(), absl::StrCat("job", t));
        if (!dir.ok() || !JobDir::Open(dir->path(), JobDir::Hold::kNone).ok()) ++failures;
        if (dir.ok() && i % 2 == 0 && !dir->RemoveOwn().ok()) ++failures;
        dir = absl::CancelledError();
        if (!JobDir::Gc(root_.path()).ok()) ++failures;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(JobDir::Gc(root_.path()).ok());
  EXPECT_FALSE(Exists(Base()));
}

// Exactly one of many wins a name.
TEST_F(JobDirTest, OneWinsAName) {
  std::vector<std::optional<JobDir>> won(8);
  std::vector<std::thread> threads;
  for (auto& slot : won) {
    threads.emplace_back([&] {
      absl::StatusOr<JobDir> dir = JobDir::Create(root_.path(), "same");
      if (dir.ok()) slot = *std::move(dir);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(std::count_if(won.begin(), won.end(), [](const auto& s) { return s.has_value(); }), 1);
}

}  // namespace
}  // namespace sherd::runtime

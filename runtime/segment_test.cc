#include "runtime/segment.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/dir_tree.h"
#include "runtime/temp_name.h"
#include "runtime/test_process.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;
using Access = Segment::Access;
constexpr SegmentKind kKind = SegmentKind::kParameters;

class SegmentTest : public ::testing::Test {
 protected:
  // Overwrites bytes of a segment's file.
  void Poke(const std::string& name, off_t at, const void* bytes, size_t n) {
    UniqueFd fd(::openat(dir_.fd(), name.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::pwrite(fd.get(), bytes, n, at), static_cast<ssize_t>(n));
  }
  absl::Status OpenStatus(const std::string& name, SegmentKind kind = kKind) {
    return Segment::Open(dir_, name, Access::kReadOnly, kind).status();
  }
  std::vector<std::string> Files() { return *ListDir(dir_.fd()); }

  TestRoot root_{"/dev/shm"};
  JobDir dir_ = *JobDir::Create(root_.path(), "job");
};

// What every segment promises, named or not.
class SegmentKinds : public SegmentTest, public ::testing::WithParamInterface<bool> {
 protected:
  absl::StatusOr<Segment> Make(int64_t bytes) {
    return GetParam() ? Segment::Create(dir_, "s", kKind, bytes) : Segment::Anonymous(bytes);
  }
};

TEST_P(SegmentKinds, ZeroedAlignedWritable) {
  for (int64_t bytes : {0, 1, 4096, 4097, 1 << 20}) {
    absl::StatusOr<Segment> s = Make(bytes);
    ASSERT_TRUE(s.ok()) << s.status();
    EXPECT_EQ(s->size(), bytes);
    ASSERT_NE(s->data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(s->data()) % 4096, 0u);
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(s->data()[i], 0);
    if (bytes > 0) std::memset(s->data(), 0xab, bytes);
    (void)Segment::Unlink(dir_, "s");
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Make(-1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Make((int64_t{1} << 46) + 1).status()));
}

// Kilobytes that /proc says of the mapping that `at` is in.
int64_t Smaps(const void* at, const std::string& field) {
  std::ifstream smaps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto address = reinterpret_cast<uintptr_t>(at);
      here = begin <= address && address < end;
    } else if (here && line.rfind(field + ":", 0) == 0) {
      return std::stol(line.substr(field.size() + 1));
    }
  }
  return -1;
}

bool LinuxHasHugePages() {
  constexpr size_t kHuge = 2 << 20;
  const int fd = ::memfd_create("probe", MFD_CLOEXEC);
  if (::ftruncate(fd, kHuge) != 0 || ::fallocate(fd, 0, 0, 4096) != 0) return false;
  void* const place = ReserveAligned(kHuge, nullptr);
  ::mmap(place, kHuge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  const bool has = ::madvise(place, kHuge, /*MADV_COLLAPSE*/ 25) == 0;
  ::munmap(place, kHuge);
  ::close(fd);
  return has;
}

TEST_P(SegmentKinds, IsInHugePagesFromTheStart) {
  if (!LinuxHasHugePages()) GTEST_SKIP() << "this Linux makes no huge pages of shared memory";
  const int64_t bytes = int64_t{201} << 20;  // several calls, and a rest
  const Segment s = *Make(bytes + 5);
  for (int64_t i = 0; i < bytes; i += 4096) s.data()[i] = 1;
  // But for the two ends.
  EXPECT_GE(Smaps(s.data(), "ShmemPmdMapped"), (bytes >> 10) - 4096);
  EXPECT_EQ(s.data()[bytes + 4], 0);
}

TEST_P(SegmentKinds, MoveKeepsTheMapping) {
  Segment a = *Make(100);
  uint8_t* const p = a.data();
  p[5] = 7;
  Segment b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(b.data(), p);
  a = std::move(b);
  EXPECT_EQ(a.data()[5], 7);
}

TEST_P(SegmentKinds, PopulateKeepsContents) {
  const int64_t bytes = (20 << 20) + 5;
  Segment s = *Make(bytes);
  s.data()[0] = 1;
  s.data()[bytes - 1] = 2;
  ASSERT_TRUE(s.Populate(3, nullptr).ok());
  EXPECT_EQ(s.data()[0], 1);
  EXPECT_EQ(s.data()[bytes - 1], 2);
  std::vector<unsigned char> resident((bytes + 4095) / 4096);
  ASSERT_EQ(::mincore(s.data(), bytes, resident.data()), 0);
  EXPECT_EQ(std::count(resident.begin(), resident.end(), 0), 0);
  std::atomic<bool> cancel{true};
  EXPECT_TRUE(absl::IsCancelled(s.Populate(2, &cancel)));
}

TEST_P(SegmentKinds, PopulateRangeTakesThePagesOfTheRange) {
  Segment s = *Make(20 << 20);
  ASSERT_TRUE(s.PopulateRange(4096 * 10 + 7, 9 << 20, nullptr).ok());
  ASSERT_TRUE(s.PopulateRange(5, 0, nullptr).ok());
  std::vector<unsigned char> resident((20 << 20) / 4096);
  ASSERT_EQ(::mincore(s.data(), 20 << 20, resident.data()), 0);
  EXPECT_EQ(std::count(resident.begin() + 10, resident.begin() + 11 + (9 << 20) / 4096, 0), 0);
  std::atomic<bool> cancel{true};
  EXPECT_TRUE(absl::IsCancelled(s.PopulateRange(0, 4096, &cancel)));
}

TEST_P(SegmentKinds, PopulateWhileInUse) {
  Segment s = *Make(64 << 20);
  auto* words = s.as<std::atomic<uint64_t>>();
  const int64_t n = s.size() / 8;
  std::thread background([&] { EXPECT_TRUE(s.Populate(2, nullptr).ok()); });
  for (int64_t i = 0; i < n; i += 512) words[i].store(i + 1, std::memory_order_relaxed);
  background.join();
  for (int64_t i = 0; i < n; i += 512) ASSERT_EQ(words[i].load(std::memory_order_relaxed), i + 1);
}

TEST_P(SegmentKinds, ProtectFaultsStores) {
  Segment s = *Make(4096);
  TestProcess fine([&] { return 0; });
  EXPECT_EQ(fine.Join(), 0);
  ASSERT_TRUE(s.Protect(Access::kReadOnly).ok());
  EXPECT_EQ(s.data()[0], 0);
  EXPECT_DEATH(s.data()[0] = 1, "");
  ASSERT_TRUE(s.Protect(Access::kReadWrite).ok());
  s.data()[0] = 1;
}

TEST_P(SegmentKinds, NotInheritedByFork) {
  Segment s = *Make(4096);
  s.data()[0] = 1;
  TestProcess child([&] {
    unsigned char resident;
    return ::mincore(s.data(), 4096, &resident) == 0 ? 1 : 0;  // ENOMEM: nothing is mapped there
  });
  EXPECT_EQ(child.Join(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, SegmentKinds, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Named" : "Anonymous"; });

TEST_F(SegmentTest, SharedByName) {
  Segment a = *Segment::Create(dir_, "params-0", kKind, 10000);
  EXPECT_EQ(Files(), std::vector<std::string>{"params-0"});
  absl::StatusOr<Segment> ro = Segment::Open(dir_, "params-0", Access::kReadOnly, kKind);
  ASSERT_TRUE(ro.ok()) << ro.status();
  Segment rw = *Segment::Open(dir_, "params-0", Access::kReadWrite, kKind);
  a.data()[9999] = 3;
  EXPECT_EQ(ro->data()[9999], 3);
  rw.data()[0] = 4;
  EXPECT_EQ(ro->data()[0], 4);
  EXPECT_EQ(ro->size(), 10000);
  EXPECT_EQ(ro->creation_id(), a.creation_id());
  EXPECT_TRUE(ro->Populate(1, nullptr).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(ro->Protect(Access::kReadWrite)));
  EXPECT_TRUE(absl::IsAlreadyExists(Segment::Create(dir_, "params-0", kKind, 5).status()));
  EXPECT_EQ(Files().size(), 1u) << "a refused creation left something";

  ASSERT_TRUE(Segment::Unlink(dir_, "params-0").ok());
  EXPECT_TRUE(absl::IsNotFound(Segment::Unlink(dir_, "params-0")));
  EXPECT_TRUE(absl::IsNotFound(OpenStatus("params-0")));
  EXPECT_EQ(ro->data()[9999], 3);
  EXPECT_NE(Segment::Create(dir_, "params-0", kKind, 1)->creation_id(), a.creation_id());
}

TEST_F(SegmentTest, OutlivesItsMaker) {
  TestProcess maker([&] {
    absl::StatusOr<Segment> s = Segment::Create(dir_, "s", kKind, 4096);
    if (!s.ok()) return 1;
    s->data()[17] = 42;
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(maker.Join(), -SIGKILL);
  EXPECT_EQ(Segment::Open(dir_, "s", Access::kReadOnly, kKind)->data()[17], 42);
}

TEST_F(SegmentTest, SpaceIsReservedOrRefused) {
  struct stat st;
  ASSERT_TRUE(Segment::Create(dir_, "s", kKind, 1 << 20).ok());
  ASSERT_EQ(::stat((dir_.path() + "/s").c_str(), &st), 0);
  EXPECT_EQ(st.st_blocks * 512, (1 << 20) + 4096);
  EXPECT_EQ(st.st_mode & 07777, 0600);
  struct statvfs fs;
  ASSERT_EQ(::fstatvfs(dir_.fd(), &fs), 0);
  const int64_t too_much = static_cast<int64_t>(fs.f_blocks * fs.f_frsize) + (1 << 20);
  absl::Status full = Segment::Create(dir_, "big", kKind, too_much).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()),
              ::testing::AllOf(
                  HasSubstr(absl::StrCat("needs ", (too_much + 4096 + 4095) / 4096 * 4096, " bytes for big")),
                  HasSubstr(dir_.path()), HasSubstr(" free;")));
  EXPECT_EQ(Files(), std::vector<std::string>{"s"});
}

TEST_F(SegmentTest, BadFilesAreRefused) {
  ASSERT_TRUE(Segment::Create(dir_, "s", kKind, 5000).ok());
  absl::Status kind = OpenStatus("s", SegmentKind::kStaging);
  EXPECT_TRUE(absl::IsFailedPrecondition(kind));
  EXPECT_THAT(std::string(kind.message()), HasSubstr("holds parameters, not staging"));

  const uint32_t version = 7;
  Poke("s", 8, &version, 4);
  absl::Status wrong = OpenStatus("s");
  EXPECT_TRUE(absl::IsFailedPrecondition(wrong));
  EXPECT_THAT(std::string(wrong.message()), ::testing::AllOf(HasSubstr("version 7"), HasSubstr("version 1"),
                                                             HasSubstr("start the job anew")));

  ASSERT_TRUE(Segment::Create(dir_, "length", kKind, 5000).ok());
  ASSERT_EQ(::truncate((dir_.path() + "/length").c_str(), 8192), 0);
  EXPECT_TRUE(absl::IsDataLoss(OpenStatus("length")));
  const uint64_t huge = ~uint64_t{0};
  Poke("length", 16, &huge, 8);
  EXPECT_TRUE(absl::IsDataLoss(OpenStatus("length")));

  ASSERT_TRUE(Segment::Create(dir_, "job", kKind, 5000).ok());
  const uint64_t other_job = 1;
  Poke("job", 32, &other_job, 8);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenStatus("job")));

  std::ofstream(dir_.path() + "/text") << "hello";
  EXPECT_TRUE(absl::IsDataLoss(OpenStatus("text")));
  std::ofstream(dir_.path() + "/empty");
  EXPECT_TRUE(absl::IsDataLoss(OpenStatus("empty")));
  ASSERT_EQ(::symlink("s", (dir_.path() + "/link").c_str()), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenStatus("link")));
  ASSERT_EQ(::mkdir((dir_.path() + "/directory").c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenStatus("directory")));
  ASSERT_EQ(::mkfifo((dir_.path() + "/fifo").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenStatus("fifo")));
  if (::geteuid() == 0) {
    ASSERT_TRUE(Segment::Create(dir_, "owner", kKind, 1).ok());
    ASSERT_EQ(::chown((dir_.path() + "/owner").c_str(), 12, 12), 0);
    EXPECT_THAT(std::string(OpenStatus("owner").message()), HasSubstr("owned by uid 12"));
  }
  for (const char* name : {"", ".", "..", ".tmp.x", "a/b", "../x", "a b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(OpenStatus(name))) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(Segment::Create(dir_, name, kKind, 1).status())) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(Segment::Unlink(dir_, name))) << name;
  }
}

// A creator that was killed half-way leaves a temporary file; the next creation of that name frees its space.
TEST_F(SegmentTest, SweepsWhatAKilledCreatorLeft) {
  TestProcess creator([&] {
    UniqueFd fd(::openat(dir_.fd(), TempName("s").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
    return fd.ok() ? 0 : 1;
  });
  EXPECT_EQ(creator.Join(), 0);
  UniqueFd mine(::openat(dir_.fd(), TempName("s").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
  UniqueFd other(::openat(dir_.fd(), TempName("s.2").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
  EXPECT_EQ(Files().size(), 3u);
  ASSERT_TRUE(Segment::Create(dir_, "s", kKind, 1).ok());
  EXPECT_EQ(Files().size(), 3u) << "the temporary files of living processes stay";
}

TEST_F(SegmentTest, OneOfManyCreatorsWins) {
  std::atomic<int> won{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      absl::Status s = Segment::Create(dir_, "s", kKind, 1 << 16).status();
      ++(s.ok() ? won : refused);
      EXPECT_TRUE(s.ok() || absl::IsAlreadyExists(s)) << s;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(won, 1);
  EXPECT_EQ(refused, 7);
  EXPECT_EQ(Files(), std::vector<std::string>{"s"});
}

}  // namespace
}  // namespace sherd::runtime

#include "runtime/formats/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace sherd::formats {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/atomic_file_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string Path(const std::string& name) const { return (directory_ / name).string(); }
  static std::string Content(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  int FilesLeft() const {
    return static_cast<int>(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
  }

  fs::path directory_;
};

TEST_F(AtomicFileTest, AppearsAtCommitWithItsContent) {
  const std::string path = Path("a.bin");
  std::ofstream(path) << "old content, longer";
  auto file = AtomicFile::Create(path, 6, {});
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->WriteAt(3, "def").ok());
  ASSERT_TRUE((*file)->WriteAt(0, "abc").ok());
  EXPECT_EQ(Content(path), "old content, longer");
  EXPECT_TRUE(fs::exists(Path(".a.bin.partial")));
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(Content(path), "abcdef");
  EXPECT_EQ((*file)->Commit().code(), absl::StatusCode::kFailedPrecondition);
  file->reset();
  EXPECT_EQ(FilesLeft(), 1);
}

TEST_F(AtomicFileTest, AbandonedLeavesNothingUnlessToldToKeep) {
  ASSERT_TRUE(AtomicFile::Create(Path("a"), 4, {}).ok());
  EXPECT_EQ(FilesLeft(), 0);
  const AtomicFile::Options keep = {AtomicFile::OnAbandon::kKeep, true};
  {
    auto file = AtomicFile::Create(Path("a"), 4, keep);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_FALSE((*file)->resumed());
    ASSERT_TRUE((*file)->WriteAt(1, "x").ok());
  }
  EXPECT_EQ(FilesLeft(), 1);
  {
    auto file = AtomicFile::Create(Path("a"), 4, keep);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->resumed());
    char byte = 0;
    ASSERT_TRUE((*file)->ReadAt(1, absl::MakeSpan(&byte, 1)).ok());
    EXPECT_EQ(byte, 'x');
  }
  {  // another size: emptied
    auto file = AtomicFile::Create(Path("a"), 5, keep);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_FALSE((*file)->resumed());
    char bytes[5] = {1, 1, 1, 1, 1};
    ASSERT_TRUE((*file)->ReadAt(0, absl::MakeSpan(bytes)).ok());
    EXPECT_EQ(std::string(bytes, 5), std::string(5, '\0'));
  }
}

TEST_F(AtomicFileTest, TwoWritersDoNotMix) {
  auto first = AtomicFile::Create(Path("a"), 4, {});
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = AtomicFile::Create(Path("a"), 4, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another process is writing it"));
  EXPECT_TRUE(fs::exists(Path(".a.partial")));  // the loser did not take the winner's file away
  first->reset();
  EXPECT_TRUE(AtomicFile::Create(Path("a"), 4, {}).ok());
}

TEST_F(AtomicFileTest, ErrorsAreOneLineWithARemedy) {
  const auto missing = AtomicFile::Create(Path("none/a"), 1, {});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("none does not exist; create it first"));
  for (const char* bad : {"", "/", "dir/", ".", ".."}) {
    EXPECT_EQ(AtomicFile::Create(bad, 1, {}).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  ASSERT_TRUE(fs::create_directory(Path("d")));
  EXPECT_THAT(std::string(AtomicFile::Create(Path("d"), 1, {}).status().message()),
              HasSubstr("is a directory"));
  ASSERT_EQ(mkfifo(Path(".p.partial").c_str(), 0600), 0);
  EXPECT_THAT(std::string(AtomicFile::Create(Path("p"), 1, {}).status().message()),
              HasSubstr("no regular file"));
  fs::create_symlink(Path("elsewhere"), Path(".s.partial"));
  EXPECT_FALSE(AtomicFile::Create(Path("s"), 1, {}).ok());
  EXPECT_FALSE(fs::exists(Path("elsewhere")));

  auto file = AtomicFile::Create(Path("a"), 4, {});
  EXPECT_EQ((*file)->WriteAt(3, "xy").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*file)->WriteAt(~uint64_t{0}, "xy").code(), absl::StatusCode::kOutOfRange);
}

TEST_F(AtomicFileTest, ATargetIsCheckedWithoutATrace) {
  EXPECT_TRUE(AtomicFile::CheckTarget(Path("a")).ok());
  EXPECT_TRUE(fs::is_empty(Path(""))) << "a check leaves nothing";
  EXPECT_EQ(AtomicFile::CheckTarget(Path("none/a")), AtomicFile::Create(Path("none/a"), 1, {}).status());
  EXPECT_EQ(AtomicFile::CheckTarget("").code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(fs::create_directory(Path("d")));
  EXPECT_EQ(AtomicFile::CheckTarget(Path("d")), AtomicFile::Create(Path("d"), 1, {}).status());
}

TEST_F(AtomicFileTest, WhatIsNoRegularFileIsNotReplaced) {
  const std::string fifo = Path("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const absl::Status refused = AtomicFile::Create(fifo, 10, {}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  struct stat there;
  ASSERT_EQ(stat(fifo.c_str(), &there), 0);
  EXPECT_TRUE(S_ISFIFO(there.st_mode));
}

TEST_F(AtomicFileTest, AFullDiskShowsAtCreateAndLeavesNothing) {
  const auto file = AtomicFile::Create(Path("a"), uint64_t{1} << 60, {});
  EXPECT_EQ(file.status().code(), absl::StatusCode::kResourceExhausted) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("no space left on the device"));
  EXPECT_EQ(AtomicFile::Create(Path("a"), ~uint64_t{0}, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(FilesLeft(), 0);
}

TEST_F(AtomicFileTest, DirectoryWithoutPermission) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  ASSERT_EQ(chmod(directory_.c_str(), 0500), 0);
  const auto file = AtomicFile::Create(Path("a"), 1, {});
  chmod(directory_.c_str(), 0700);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kPermissionDenied) << file.status();
}

TEST(FileError, MapsTheUsualErrors) {
  const std::pair<int, absl::StatusCode> cases[] = {
      {ENOENT, absl::StatusCode::kNotFound},          {EACCES, absl::StatusCode::kPermissionDenied},
      {EPERM, absl::StatusCode::kPermissionDenied},   {EROFS, absl::StatusCode::kPermissionDenied},
      {ENOSPC, absl::StatusCode::kResourceExhausted}, {EDQUOT, absl::StatusCode::kResourceExhausted},
      {EFBIG, absl::StatusCode::kResourceExhausted},  {EMFILE, absl::StatusCode::kResourceExhausted},
      {EEXIST, absl::StatusCode::kAlreadyExists},
  };
  for (const auto& [error, code] : cases) {
    const absl::Status status = FileError(error, "write", "dir/file");
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("cannot write dir/file: ")) << status;
  }
}

}  // namespace
}  // namespace sherd::formats

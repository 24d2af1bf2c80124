#include "runtime/formats/summed_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <random>

#include "gtest/gtest.h"
#include "runtime/crc32c.h"
#include "runtime/test_root.h"

namespace sherd::formats {
namespace {

class SummedFileTest : public ::testing::TestWithParam<FileAccess> {
 protected:
  std::string Path(const std::string& name) const { return root_.path() + "/" + name; }
  static std::string Bytes(int64_t n) {
    std::mt19937_64 random(7);
    std::string bytes(n, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
  }
  FileSum Write(const std::string& path, const std::string& bytes) const {
    auto writer = SummedFileWriter::Create(path, bytes.size(), GetParam());
    EXPECT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE((*writer)->Append(bytes).ok());
    absl::StatusOr<FileSum> sum = (*writer)->Finish();
    EXPECT_TRUE(sum.ok()) << sum.status();
    return *sum;
  }
  static std::string Whole(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  }
  runtime::TestRoot root_;
};

TEST_P(SummedFileTest, WhatWasWrittenIsReadBackWithItsSums) {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{5000}, kSummedChunkBytes,
                    3 * kSummedChunkBytes + 777, 5 * kSummedChunkBytes}) {
    SCOPED_TRACE(n);
    const std::string path = Path(std::to_string(n)), bytes = Bytes(n);
    const FileSum sum = Write(path, bytes);
    EXPECT_EQ(sum.bytes, n);
    EXPECT_EQ(sum.crc32c, runtime::Crc32c(bytes));
    EXPECT_EQ(Whole(path), bytes);
    auto reader = SummedFileReader::Open(path, sum, GetParam());
    ASSERT_TRUE(reader.ok()) << reader.status();
    const DirectBuffer buffer((*reader)->buffer_bytes());
    std::string back;
    for (int64_t i = 0; i < (*reader)->chunks(); ++i) {
      const auto chunk = (*reader)->Read(i, buffer);
      ASSERT_TRUE(chunk.ok()) << chunk.status();
      back.append(chunk->data(), chunk->size());
    }
    EXPECT_EQ(back, bytes);
  }
}

TEST_P(SummedFileTest, ADamagedByteAndALostOneAreNamed) {
  const std::string path = Path("file"), bytes = Bytes(2 * kSummedChunkBytes + 100);
  const FileSum sum = Write(path, bytes);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(kSummedChunkBytes + 5);
    file.put(static_cast<char>(bytes[kSummedChunkBytes + 5] ^ 1));
  }
  auto reader = SummedFileReader::Open(path, sum, GetParam());
  ASSERT_TRUE(reader.ok());
  const DirectBuffer buffer((*reader)->buffer_bytes());
  EXPECT_TRUE((*reader)->Read(0, buffer).ok());
  const absl::Status damaged = (*reader)->Read(1, buffer).status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(damaged.message().find(path + " is damaged: bytes 4194304 to 8388608"), std::string::npos)
      << damaged;
  ASSERT_EQ(truncate(path.c_str(), 1000), 0);
  EXPECT_EQ(SummedFileReader::Open(path, sum, GetParam()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(SummedFileTest, AnUnfinishedFileIsRemovedAndAnExistingOneKept) {
  const std::string path = Path("file");
  {
    auto writer = SummedFileWriter::Create(path, 100, GetParam());
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append("short").ok());
    EXPECT_EQ((*writer)->Finish().status().code(), absl::StatusCode::kInternal);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  Write(path, "precious");
  EXPECT_EQ(SummedFileWriter::Create(path, 1, GetParam()).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Whole(path), "precious");
}

TEST_P(SummedFileTest, AWriteThatFailsInTheMiddleIsOneError) {
  // As on a disk that fills up while others write to it.
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = kSummedChunkBytes + 8192;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string path = Path("file"), bytes = Bytes(8 * kSummedChunkBytes);
  {
    auto writer = SummedFileWriter::Create(path, bytes.size(), GetParam());
    ASSERT_TRUE(writer.ok());
    absl::Status s = (*writer)->Append(bytes);
    if (s.ok()) s = (*writer)->Finish().status();
    EXPECT_EQ(s.code(), absl::StatusCode::kResourceExhausted) << s;
    EXPECT_NE(s.message().find(path), std::string::npos);
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_P(SummedFileTest, SumsThatCannotBeAreRefused) {
  const FileSum good = Write(Path("file"), Bytes(10000));
  for (FileSum bad : {FileSum{10000, 0, 0, {1}}, FileSum{10000, 0, int64_t{1} << 40, {1}},
                      FileSum{10000, 0, 4096, {1, 2}}, FileSum{-1, 0, 4096, {}}, FileSum{0, 0, 4096, {1}}}) {
    EXPECT_EQ(SummedFileReader::Open(Path("file"), bad, GetParam()).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

INSTANTIATE_TEST_SUITE_P(Access, SummedFileTest,
                         ::testing::Values(FileAccess::kDirect, FileAccess::kBuffered));

}  // namespace
}  // namespace sherd::formats

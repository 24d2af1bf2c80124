#include "runtime/formats/safetensors_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace sherd::formats {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SafetensorsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/safetensors_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = (directory_ / "model.safetensors").string();
  }
  void TearDown() override { fs::remove_all(directory_); }

  static FilePlan Plan() {
    return *LayOut({{"a", StoredType::kF32, {2}}, {"b", StoredType::kBF16, {4}}, {"e", StoredType::kU8, {0}}},
                   {{"step", "3"}});
  }
  void WriteRaw(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
  std::string OpenError() const { return std::string(SafetensorsReader::Open(path_).status().message()); }

  fs::path directory_;
  std::string path_;
};

TEST_F(SafetensorsFileTest, WhatIsWrittenIsRead) {
  auto writer = SafetensorsWriter::Create(path_, Plan(), {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->WriteAt("b", 4, "WXYZ").ok());
  ASSERT_TRUE((*writer)->WriteAt("a", 0, "01234567").ok());
  ASSERT_TRUE((*writer)->WriteAt("b", 0, "STUV").ok());
  ASSERT_TRUE((*writer)->WriteAt("e", 0, "").ok());
  ASSERT_TRUE((*writer)->Commit().ok());

  auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->tensors().size(), 3u);
  EXPECT_EQ((*reader)->header().metadata.at("step"), "3");
  EXPECT_EQ((*reader)->header().metadata.at("format"), "pt");
  ASSERT_NE((*reader)->Find("b"), nullptr);
  EXPECT_EQ((*reader)->Find("b")->dtype, StoredType::kBF16);
  EXPECT_EQ((*reader)->Find("c"), nullptr);
  std::string bytes(8, ' ');
  ASSERT_TRUE((*reader)->Read("b", 0, absl::MakeSpan(&bytes[0], 8)).ok());
  EXPECT_EQ(bytes, "STUVWXYZ");
  ASSERT_TRUE((*reader)->Read("a", 5, absl::MakeSpan(&bytes[0], 3)).ok());
  EXPECT_EQ(bytes.substr(0, 3), "567");
  EXPECT_TRUE((*reader)->Read("e", 0, {}).ok());

  EXPECT_EQ((*reader)->Read("c", 0, absl::MakeSpan(&bytes[0], 1)).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*reader)->Read("a", 1, absl::MakeSpan(&bytes[0], 8)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*reader)->Read("a", ~uint64_t{0}, absl::MakeSpan(&bytes[0], 2)).code(),
            absl::StatusCode::kOutOfRange);
  fs::resize_file(path_, fs::file_size(path_) - 2);
  EXPECT_EQ((*reader)->Read("b", 0, absl::MakeSpan(&bytes[0], 8)).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(OpenError(), HasSubstr("tensor \"b\" ends at offset 16, past the data's 14 bytes"));
}

TEST_F(SafetensorsFileTest, CommitRefusesAFileWithGaps) {
  auto writer = SafetensorsWriter::Create(path_, Plan(), {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_THAT(std::string((*writer)->Commit().message()),
              HasSubstr("tensor \"a\" was not written from byte 0 on"));
  ASSERT_TRUE((*writer)->WriteAt("a", 0, "01234567").ok());
  ASSERT_TRUE((*writer)->WriteAt("b", 0, "S").ok());
  ASSERT_TRUE((*writer)->WriteAt("b", 5, "XYZ").ok());
  EXPECT_THAT(std::string((*writer)->Commit().message()),
              HasSubstr("tensor \"b\" was not written from byte 1 on"));
  EXPECT_EQ((*writer)->present_bytes(), 12u);
  ASSERT_TRUE((*writer)->WriteAt("b", 0, "STUVWX").ok());  // overlapping what is there
  EXPECT_EQ((*writer)->present_bytes(), 16u);
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_TRUE(SafetensorsReader::Open(path_).ok());
}

TEST_F(SafetensorsFileTest, WriterRefusesWhatIsOutsideThePlan) {
  auto writer = SafetensorsWriter::Create(path_, Plan(), {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_EQ((*writer)->WriteAt("c", 0, "x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*writer)->WriteAt("a", 7, "xx").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteAt("e", 0, "x").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteData(15, "xx").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->MarkPresent(1, ~uint64_t{0}).code(), absl::StatusCode::kOutOfRange);
  writer->reset();
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(SafetensorsFileTest, ResumesOnlyTheSameFile) {
  const AtomicFile::Options keep = {AtomicFile::OnAbandon::kKeep, true};
  {
    auto writer = SafetensorsWriter::Create(path_, Plan(), keep);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_FALSE((*writer)->resumed());
    ASSERT_TRUE((*writer)->WriteData(0, "0123456789").ok());
  }
  {
    auto writer = SafetensorsWriter::Create(path_, Plan(), keep);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_TRUE((*writer)->resumed());
    EXPECT_EQ((*writer)->present_bytes(), 0u);
    std::string bytes(10, ' ');
    ASSERT_TRUE((*writer)->ReadBack(0, absl::MakeSpan(&bytes[0], 10)).ok());
    EXPECT_EQ(bytes, "0123456789");
    ASSERT_TRUE((*writer)->MarkPresent(0, 10).ok());
    EXPECT_EQ((*writer)->present_bytes(), 10u);
  }
  {  // the same tensors of another step
    FilePlan other =
        *LayOut({{"a", StoredType::kF32, {2}}, {"b", StoredType::kBF16, {4}}, {"e", StoredType::kU8, {0}}},
                {{"step", "4"}});
    ASSERT_EQ(other.header.file_bytes(), Plan().header.file_bytes());
    auto writer = SafetensorsWriter::Create(path_, other, keep);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_FALSE((*writer)->resumed());
    ASSERT_TRUE((*writer)->WriteData(0, "0123456789012345").ok());
    ASSERT_TRUE((*writer)->Commit().ok());
  }
  EXPECT_EQ((*SafetensorsReader::Open(path_))->header().metadata.at("step"), "4");
}

TEST_F(SafetensorsFileTest, ManyThreadsWriteOneFile) {
  constexpr int kThreads = 4, kChunks = 64, kChunk = 1000;
  const FilePlan plan = *LayOut({{"w", StoredType::kU8, {kThreads * kChunks * kChunk}}}, {});
  auto writer = SafetensorsWriter::Create(path_, plan, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = i * kThreads + t;
        EXPECT_TRUE(
            (*writer)->WriteAt("w", chunk * kChunk, std::string(kChunk, static_cast<char>(chunk))).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ((*writer)->present_bytes(), plan.header.data_bytes);
  ASSERT_TRUE((*writer)->Commit().ok());
  auto reader = SafetensorsReader::Open(path_);
  std::string bytes(plan.header.data_bytes, ' ');
  ASSERT_TRUE((*reader)->Read("w", 0, absl::MakeSpan(&bytes[0], bytes.size())).ok());
  for (size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], static_cast<char>(i / kChunk)) << i;
}

TEST_F(SafetensorsFileTest, OpenRefusesWhatIsNoSafetensorsFile) {
  EXPECT_EQ(SafetensorsReader::Open(path_).status().code(), absl::StatusCode::kNotFound);
  WriteRaw("");
  EXPECT_THAT(OpenError(), HasSubstr(path_ + ": only 0 bytes"));
  WriteRaw("1234567");
  EXPECT_THAT(OpenError(), HasSubstr("only 7 bytes"));
  WriteRaw(std::string(64, '\0'));
  EXPECT_THAT(OpenError(), HasSubstr("header size is 0"));
  WriteRaw("PK\x03\x04 a zip file, as torch.save writes");
  EXPECT_THAT(OpenError(), HasSubstr("over the format's limit"));
  const std::string head = Plan().header_bytes;
  WriteRaw(head.substr(0, 40));
  EXPECT_THAT(OpenError(), HasSubstr("reaches past the end of the file of 40 bytes"));
  WriteRaw(head + std::string(17, 'x'));
  EXPECT_THAT(OpenError(), HasSubstr("1 bytes after the last tensor"));
  EXPECT_EQ(OpenError().find('\n'), std::string::npos);
  EXPECT_THAT(std::string(SafetensorsReader::Open(directory_.string()).status().message()),
              HasSubstr("not a regular file"));
  const std::string pipe = (directory_ / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(std::string(SafetensorsReader::Open(pipe).status().message()), HasSubstr("not a regular file"));
}

// The format's own reader, where this machine has it.
TEST_F(SafetensorsFileTest, ThePythonPackageOpensIt) {
  if (std::system("python3 -c 'import safetensors, numpy' 2>/dev/null") != 0) {
    GTEST_SKIP() << "Python packages safetensors and numpy are not installed";
  }
  auto writer = SafetensorsWriter::Create(
      path_, *LayOut({{"a", StoredType::kF32, {2}}, {"i", StoredType::kI16, {2, 2}}}, {{"step", "3"}}), {});
  const float values[2] = {1.5f, -2.0f};
  ASSERT_TRUE((*writer)->WriteAt("a", 0, {reinterpret_cast<const char*>(values), 8}).ok());
  ASSERT_TRUE((*writer)->WriteAt("i", 0, absl::string_view("\1\0\2\0\3\0\4\0", 8)).ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  const std::string script = absl::StrCat(
      "python3 -c \"import safetensors as s; f = s.safe_open('", path_,
      "', 'np'); assert f.get_tensor('a').tolist() == [1.5, -2.0]; ",
      "assert f.get_tensor('i').tolist() == [[1, 2], [3, 4]]; assert f.metadata()['step'] == '3'\"");
  EXPECT_EQ(std::system(script.c_str()), 0);
}

}  // namespace
}  // namespace sherd::formats

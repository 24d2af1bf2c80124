// Zip files: what the layout writes the reader reads, and nothing else.
#include <fcntl.h>
#include <unistd.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/crc32.h"
#include "runtime/formats/zip_layout.h"
#include "runtime/formats/zip_reader.h"
#include "runtime/test_root.h"

namespace sherd::formats {
namespace {

using ::testing::HasSubstr;

struct File {
  std::string name, bytes;
};

// A zip of files, as ZipLayout says.
std::string Zip(const std::vector<File>& files) {
  std::vector<ZipLayout::Item> items;
  std::vector<uint32_t> crcs;
  for (const File& f : files) {
    items.push_back({f.name, f.bytes.size()});
    crcs.push_back(ExtendCrc32(0, f.bytes));
  }
  absl::StatusOr<ZipLayout> layout = ZipLayout::Make(items);
  EXPECT_TRUE(layout.ok()) << layout.status();
  std::string out;
  for (size_t i = 0; i < files.size(); ++i) {
    out.resize(layout->entries()[i].header_begin);
    out += layout->LocalHeader(i, crcs[i]);
    EXPECT_EQ(out.size(), layout->entries()[i].data_begin);
    out += files[i].bytes;
  }
  EXPECT_EQ(out.size(), layout->directory_begin());
  out += layout->Directory(crcs);
  EXPECT_EQ(out.size(), layout->file_bytes());
  return out;
}

class ZipTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ZipReader>> Open(const std::string& bytes) {
    const std::string path = root_.path() + "/a.zip";
    EXPECT_TRUE(WriteWhole(path, bytes).ok());
    return ZipReader::Open(path);
  }
  void Refused(const std::string& bytes, const std::string& why) {
    const absl::Status status = Open(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
  // The zip with bytes at `at` replaced, which must be different ones.
  static std::string With(std::string zip, size_t at, const std::string& bytes) {
    EXPECT_NE(zip.substr(at, bytes.size()), bytes);
    return zip.replace(at, bytes.size(), bytes);
  }

  runtime::TestRoot root_{"/tmp"};
};

TEST(Crc32, IsThatOfZip) {
  EXPECT_EQ(ExtendCrc32(0, "123456789"), 0xCBF43926u);
  EXPECT_EQ(ExtendCrc32(ExtendCrc32(0, "1234"), "56789"), 0xCBF43926u);
  EXPECT_EQ(ExtendCrc32(0, ""), 0u);
}

TEST_F(ZipTest, ReadsWhatIsWritten) {
  const std::vector<File> files = {
      {"a/data.pkl", "hello"}, {"a/empty", ""}, {"a/data/0", std::string(1000, 'x')}};
  absl::StatusOr<std::unique_ptr<ZipReader>> zip = Open(Zip(files));
  ASSERT_TRUE(zip.ok()) << zip.status();
  ASSERT_EQ((*zip)->entries().size(), files.size());
  for (const File& f : files) {
    const ZipReader::Entry* entry = (*zip)->Find(f.name);
    ASSERT_NE(entry, nullptr) << f.name;
    EXPECT_EQ(entry->data_begin % 64, 0);
    EXPECT_EQ((*zip)->ReadEntry(*entry, 1000).value_or("an error"), f.bytes);
  }
  EXPECT_EQ((*zip)->Find("a/none"), nullptr);
  const ZipReader::Entry* large = (*zip)->Find("a/data/0");
  EXPECT_EQ((*zip)->ReadEntry(*large, 999).status().code(), absl::StatusCode::kOutOfRange);
  char byte = 0;
  EXPECT_EQ((*zip)->Read(*large, 1000, absl::MakeSpan(&byte, 1)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*Open(Zip({})))->entries().size(), 0);
}

TEST_F(ZipTest, NamesAreCheckedBeforeWriting) {
  EXPECT_FALSE(ZipLayout::Make({{"", 1}}).ok());
  EXPECT_FALSE(ZipLayout::Make({{"a", 1}, {"a", 1}}).ok());
  EXPECT_FALSE(ZipLayout::Make({{std::string(70000, 'a'), 1}}).ok());
  EXPECT_FALSE(ZipLayout::Make({{"a", ~uint64_t{0}}}).ok());
  EXPECT_FALSE(ZipLayout::Make({{"a", uint64_t{1} << 62}, {"b", uint64_t{1} << 62}, {"c", 1}}).ok());
}

// Sizes and offsets past 4 GiB, in a file of holes.
TEST_F(ZipTest, WideSizesAndOffsets) {
  const uint64_t wide = (uint64_t{5} << 30) + 3;
  absl::StatusOr<ZipLayout> layout = ZipLayout::Make({{"a/large", wide}, {"a/behind", 4}});
  ASSERT_TRUE(layout.ok());
  const std::string path = root_.path() + "/wide.zip";
  const runtime::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(fd.get(), layout->file_bytes()), 0);
  const auto write = [&](uint64_t at, const std::string& bytes) {
    ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), at), bytes.size());
  };
  const std::vector<uint32_t> crcs = {0, ExtendCrc32(0, "tail")};
  for (size_t i = 0; i < 2; ++i) write(layout->entries()[i].header_begin, layout->LocalHeader(i, crcs[i]));
  write(layout->entries()[1].data_begin, "tail");
  write(layout->directory_begin(), layout->Directory(crcs));
  absl::StatusOr<std::unique_ptr<ZipReader>> zip = ZipReader::Open(path);
  ASSERT_TRUE(zip.ok()) << zip.status();
  EXPECT_EQ((*zip)->Find("a/large")->bytes, wide);
  EXPECT_EQ((*zip)->ReadEntry(*(*zip)->Find("a/behind"), 10).value_or("an error"), "tail");
}

TEST_F(ZipTest, ManyEntries) {
  std::vector<File> files;
  for (int i = 0; i < 70000; ++i) files.push_back({absl::StrCat("a/", i), ""});
  absl::StatusOr<std::unique_ptr<ZipReader>> zip = Open(Zip(files));
  ASSERT_TRUE(zip.ok()) << zip.status();
  EXPECT_EQ((*zip)->entries().size(), files.size());
}

TEST_F(ZipTest, RefusesWhatCanBeUnderstoodInTwoWays) {
  const std::string zip = Zip({{"a/0", "zero"}, {"a/1", "one"}});
  const size_t directory = zip.find("PK\x01\x02"), second = zip.find("PK\x01\x02", directory + 1);
  const size_t end = zip.size() - 22;
  Refused("", "too short");
  Refused(std::string(100, 'x'), "no zip file");
  Refused(zip + "x", "stands behind");
  Refused(zip.substr(0, zip.size() - 1), "cut short");
  Refused(With(zip, directory, "PK\x01\x03"), "entry 0");
  Refused(With(zip, directory + 8, "\x01"), "encrypted");
  Refused(With(zip, directory + 10, "\x08"), "compressed (method 8)");
  Refused(With(zip, directory + 24, "\x05"), "malformed");  // of two sizes
  Refused(With(zip, directory + 42, "\x40"), "overlaps");   // header_begin
  Refused(With(zip, second + 42, std::string(4, '\0')), "overlaps");
  Refused(With(zip, directory + 48, "9"), "its own header");  // the name
  Refused(With(With(zip, directory + 48, "1"), 32, "1"), "is there twice");
  Refused(With(zip, 14, "\x01"), "checksum in its own header");
  Refused(With(zip, end + 8, std::string("\x03\0\x03", 3)), "states 3 entries");
  Refused(With(zip, end + 8, "\x03"), "several volumes");
  Refused(With(zip, end + 16, "\xFF"), "does not end where");
  std::string large = With(zip, directory + 20, "\xFF");
  Refused(With(large, directory + 24, "\xFF"), "overlaps what follows");
}

TEST_F(ZipTest, DamagedDataIsSeen) {
  std::string zip = Zip({{"a", "content"}});
  zip[zip.find("content")] = 'C';
  absl::StatusOr<std::unique_ptr<ZipReader>> reader = Open(zip);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->ReadEntry((*reader)->entries()[0], 100).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace sherd::formats

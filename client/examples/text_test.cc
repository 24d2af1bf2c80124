#include "client/examples/text.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "client/examples/bible_data.h"

namespace sherd::examples {
namespace {

// Packs nine-bit codes as compress(1) does, least significant bit first.
std::string Pack9(const std::vector<int>& codes) {
  std::string out;
  uint32_t word = 0;
  int bits = 0;
  for (int code : codes) {
    word |= static_cast<uint32_t>(code) << bits;
    for (bits += 9; bits >= 8; bits -= 8, word >>= 8) out.push_back(static_cast<char>(word));
  }
  if (bits > 0) out.push_back(static_cast<char>(word));
  return out;
}

std::string BigEndian(uint32_t v) {
  return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8),
          static_cast<char>(v)};
}

std::string BibleFile(const std::vector<std::string>& windows, uint32_t window_bytes) {
  std::string file = "EC02Compressed Data File";
  file.resize(0x54, '\0');
  file += BigEndian(window_bytes) + BigEndian(windows.size());
  uint32_t offset = file.size() + 4 * (windows.size() + 1);
  file += BigEndian(offset);
  for (const std::string& w : windows) file += BigEndian(offset += w.size());
  for (const std::string& w : windows) file += w;
  return file;
}

std::string TempFile(const std::string& name, const std::string& bytes) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

TEST(Lzw, UnpacksEntriesAndTheOneInTheMaking) {
  EXPECT_EQ(*DecodeLzw(Pack9({'a', 'b', 257, 259, 258}), 100), "ababababa");
  // 'a', then entry 257 while it is being made: "aa"; then 258 likewise: "aaa".
  EXPECT_EQ(*DecodeLzw(Pack9({'a', 257, 258}), 100), "aaaaaa");
  EXPECT_EQ(*DecodeLzw("", 100), "");
}

TEST(Lzw, RefusesCodesBeforeTheirEntryAndTooMuch) {
  EXPECT_EQ(DecodeLzw(Pack9({'a', 300}), 100).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(DecodeLzw(Pack9({257}), 100).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(DecodeLzw(Pack9({'a', 257, 258}), 5).status().code(), absl::StatusCode::kDataLoss);
}

TEST(BibleData, JoinsWindows) {
  EXPECT_EQ(*DecodeBibleData(BibleFile({Pack9({'h', 'e', 'y'}), Pack9({'!', '\n'})}, 64)), "hey!\n");
}

TEST(BibleData, DamageIsNamedNotFollowed) {
  const std::string good = BibleFile({Pack9({'h', 'e', 'y'})}, 64);
  for (size_t n = 0; n < good.size(); ++n) {
    EXPECT_FALSE(DecodeBibleData(good.substr(0, n)).ok()) << n;
  }
  std::string many = good;
  many.replace(0x58, 4, BigEndian(0xffffffff));
  EXPECT_EQ(DecodeBibleData(many).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(DecodeBibleData(BibleFile({Pack9({'h', 'e', 'y'})}, 2)).ok());
}

TEST(Text, DefaultIsTheKingJamesBible) {
  const absl::StatusOr<Text> text = Text::Load("");
  if (absl::IsNotFound(text.status())) {
    EXPECT_NE(text.status().message().find("apt-get install bible-kjv-text"), std::string::npos)
        << text.status();
    GTEST_SKIP() << text.status();
  }
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->train().size() + text->held_out().size(), 4404475u);
  EXPECT_NE(text->train().find("Ge1:1 In the beginning God created the heaven and the earth.\n"),
            absl::string_view::npos);
  EXPECT_EQ(text->held_out().substr(text->held_out().size() - 7), " Amen.\n");
}

TEST(Text, MissingEmptyOrUnreadableIsOneLineWithTheName) {
  absl::Status missing = Text::Load("/no/such/text").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("/no/such/text"), std::string::npos);
  // A pipe without a writer would be waited for.
  const std::string pipe = testing::TempDir() + "/text.pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string others[][2] = {
      {testing::TempDir(), "directory"}, {pipe, "pipe"}, {"/dev/zero", "device"}};
  for (const auto& [path, kind] : others) {
    const absl::Status status = Text::Load(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_NE(status.message().find(path + ": not a regular file but a " + kind), std::string::npos)
        << status;
  }
  ::unlink(pipe.c_str());
  EXPECT_EQ(Text::Load(TempFile("empty", "")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Text, TooShortNamesBothNumbers) {
  const absl::StatusOr<Text> text = Text::Load(TempFile("short", std::string(2579, 'x')));
  ASSERT_TRUE(text.ok());
  const absl::Status status = text->CheckContext(128);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("2579 bytes"), std::string::npos) << status;
  EXPECT_NE(status.message().find("2580"), std::string::npos) << status;
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  EXPECT_TRUE(Text("enough", std::string(2580, 'x')).CheckContext(128).ok());
}

TEST(Text, PartsAndWindows) {
  const Text text("t", std::string(1000, 'x') + "y");
  EXPECT_EQ(text.held_out().size(), 50u);
  EXPECT_EQ(text.held_out().back(), 'y');
  EXPECT_NE(text.crc(), Text("t", std::string(1000, 'x') + "z").crc());
  for (int64_t context : {1, 7, 24, 48, 49}) {
    const std::vector<int64_t> windows = text.HeldOutWindows(context, 3);
    ASSERT_FALSE(windows.empty());
    EXPECT_EQ(windows, text.HeldOutWindows(context, 3));
    for (size_t i = 0; i < windows.size(); ++i) {
      EXPECT_GE(windows[i], i == 0 ? 0 : windows[i - 1] + context + 1);
      EXPECT_LE(windows[i] + context + 1, 50);
    }
  }
}

}  // namespace
}  // namespace sherd::examples

#include "runtime/crc32c.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

// Bit by bit, from the definition.
uint32_t Reference(const uint8_t* p, size_t n) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < n; ++i) {
    crc ^= p[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

TEST(Crc32c, Vectors) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string up(32, 0), down(32, 0);
  for (int i = 0; i < 32; ++i) {
    up[i] = static_cast<char>(i);
    down[i] = static_cast<char>(31 - i);
  }
  EXPECT_EQ(Crc32c(up), 0x46dd794eu);
  EXPECT_EQ(Crc32c(down), 0x113fdb5cu);
}

TEST(Crc32c, AnyLengthAlignmentAndSplit) {
  std::mt19937 random(1);
  std::vector<uint8_t> data(70000), copy(70000);
  for (uint8_t& b : data) b = static_cast<uint8_t>(random());
  for (size_t n : {0, 1, 7, 8, 15, 63, 64, 255, 1024, 4095, 16384, 16385, 65000}) {
    const size_t at = random() % 64;
    const size_t split = n == 0 ? 0 : random() % (n + 1);
    const uint32_t expected = Reference(data.data() + at, n);
    EXPECT_EQ(Crc32c(data.data() + at, n), expected) << n;
    EXPECT_EQ(ExtendCrc32c(Crc32c(data.data() + at, split), data.data() + at + split, n - split), expected)
        << n;
    std::fill(copy.begin(), copy.end(), 0);
    const uint32_t first = CopyExtendCrc32c(0, copy.data() + 3, data.data() + at, split);
    EXPECT_EQ(CopyExtendCrc32c(first, copy.data() + 3 + split, data.data() + at + split, n - split),
              expected);
    EXPECT_EQ(std::memcmp(copy.data() + 3, data.data() + at, n), 0);
    EXPECT_EQ(copy[2], 0);
    EXPECT_EQ(copy[3 + n], 0);
  }
}

TEST(Crc32c, Speed) {
  std::vector<uint8_t> from(32 << 20, 3), to(32 << 20, 1);
  auto best = [&](auto&& f) {
    double seconds = 1e9;
    for (int i = 0; i < 3; ++i) {
      const auto start = std::chrono::steady_clock::now();
      f();
      seconds =
          std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return static_cast<double>(from.size()) / seconds / 1e9;
  };
  uint32_t a = 0, b = 0;
  const double fused = best([&] { a = CopyExtendCrc32c(0, to.data(), from.data(), from.size()); });
  const double apart = best([&] {
    std::memcpy(to.data(), from.data(), from.size());
    b = Crc32c(to.data(), to.size());
  });
  const double crc = best([&] { b = Crc32c(to.data(), to.size()); });
  EXPECT_EQ(a, b);
  std::printf("crc32c %.1f GB/s; copy and crc fused %.1f GB/s, apart %.1f GB/s\n", crc, fused, apart);
}

}  // namespace
}  // namespace sherd::runtime

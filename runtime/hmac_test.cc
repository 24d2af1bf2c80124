#include "runtime/hmac.h"

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

std::string Hex(const Digest256& digest) { return absl::BytesToHexString(AsBytes(digest)); }

// Test cases 1, 2, 3 and 6 of RFC 4231.
TEST(Hmac, KnownAnswers) {
  EXPECT_EQ(Hex(HmacSha256(std::string(20, '\x0b'), "Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(Hex(HmacSha256("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(Hex(HmacSha256(std::string(20, '\xaa'), std::string(50, '\xdd'))),
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
  EXPECT_EQ(
      Hex(HmacSha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First")),
      "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(Hmac, Compares) {
  EXPECT_TRUE(EqualInConstantTime("", ""));
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abd"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abcd"));
}

TEST(Hmac, RandomBytesDiffer) {
  Digest256 a = {}, b = {};
  FillRandom(a.data(), a.size());
  FillRandom(b.data(), b.size());
  EXPECT_NE(a, b);
  EXPECT_NE(a, Digest256{});
}

}  // namespace
}  // namespace sherd::runtime

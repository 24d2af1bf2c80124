#include "runtime/link_protocol.h"

#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

FrameHeader SomeHeader() {
  FrameHeader h;
  h.type = 0xfedc;
  h.flags = 0x1234;
  h.stream = 0x89abcdef;
  h.part = 7;
  h.mark = 0x0123456789abcdef;
  h.offset = uint64_t{1} << 40;
  h.length = 1000;
  return h;
}

TEST(LinkProtocol, HeadersComeBack) {
  char bytes[kFrameHeaderBytes];
  EncodeFrameHeader(SomeHeader(), bytes);
  EXPECT_EQ(DecodeFrameHeader(bytes, 1000).value(), SomeHeader());
}

TEST(LinkProtocol, TooLong) {
  char bytes[kFrameHeaderBytes];
  EncodeFrameHeader(SomeHeader(), bytes);
  const absl::Status s = DecodeFrameHeader(bytes, 999).status();
  EXPECT_TRUE(absl::IsResourceExhausted(s));
  EXPECT_THAT(s.message(), HasSubstr("1000"));
  EXPECT_THAT(s.message(), HasSubstr("999"));
}

TEST(LinkProtocol, EveryFlippedBitIsNoticed) {
  char bytes[kFrameHeaderBytes];
  EncodeFrameHeader(SomeHeader(), bytes);
  for (size_t bit = 0; bit < 8 * kFrameHeaderBytes; ++bit) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    EXPECT_TRUE(absl::IsDataLoss(DecodeFrameHeader(bytes, 1000).status())) << "bit " << bit;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
  }
}

TEST(LinkProtocol, NoiseIsNoHeader) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 10000; ++i) {
    char bytes[kFrameHeaderBytes];
    for (char& c : bytes) c = static_cast<char>(random());
    EXPECT_FALSE(DecodeFrameHeader(bytes, ~uint64_t{0}).ok());
  }
}

TEST(LinkProtocol, IdentitiesComeBack) {
  const LinkIdentity identity = {"0a1b2c3d-0000-4000-8000-000000000001", 3, 5, 7, 0xdeadbeefcafebabe};
  char bytes[kIdentityBytes];
  EncodeIdentity(identity, bytes);
  EXPECT_EQ(DecodeIdentity(absl::string_view(bytes, kIdentityBytes)).value(), identity);
  EXPECT_EQ(ToString(identity), "host 3, incarnation 5, epoch 7 of job " + identity.job_uuid);
  bytes[4] = '\n';
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeIdentity(absl::string_view(bytes, kIdentityBytes)).status()));
}

}  // namespace
}  // namespace sherd::runtime

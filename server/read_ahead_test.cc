#include "server/read_ahead.h"

#include <atomic>
#include <string>

#include "gtest/gtest.h"

namespace sherd::server {
namespace {

grpc::ByteBuffer Message(int i) {
  const grpc::Slice slice(std::to_string(i));
  return grpc::ByteBuffer(&slice, 1);
}

std::string TextOf(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  EXPECT_TRUE(buffer.DumpToSingleSlice(&slice).ok());
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}

TEST(ReadAhead, HandsOutAllInOrder) {
  int made = 0;
  ReadAhead messages([&]() -> ReadAhead::Result {
    if (made == 1000) return std::nullopt;
    return Message(made++);
  });
  for (int i = 0; i < 1000; ++i) {
    const ReadAhead::Result message = messages.Next();
    ASSERT_TRUE(message.ok() && message->has_value());
    ASSERT_EQ(TextOf(**message), std::to_string(i));
  }
  const ReadAhead::Result end = messages.Next();
  ASSERT_TRUE(end.ok());
  EXPECT_FALSE(end->has_value());
}

TEST(ReadAhead, AnErrorComesAfterWhatWasMadeBeforeIt) {
  bool first = true;
  ReadAhead messages([&]() -> ReadAhead::Result {
    if (!first) return absl::DataLossError("gone");
    first = false;
    return Message(7);
  });
  const ReadAhead::Result message = messages.Next();
  ASSERT_TRUE(message.ok() && message->has_value());
  EXPECT_EQ(TextOf(**message), "7");
  EXPECT_EQ(messages.Next().status(), absl::DataLossError("gone"));
}

TEST(ReadAhead, MakesNoMoreThanItsDepthAheadAndEndsUnread) {
  std::atomic<int> made{0};
  {
    ReadAhead messages([&]() -> ReadAhead::Result { return Message(made++); });
    ASSERT_TRUE(messages.Next().ok());
  }
  EXPECT_LE(made.load(), 4);
}

}  // namespace
}  // namespace sherd::server

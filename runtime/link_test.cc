#include "runtime/link.h"

#include <sys/mman.h>

#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/test_links.h"
#include "runtime/test_process.h"

namespace sherd::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using State = LinkHealth::State;

class LinkTest : public TestLinks {};

iovec Part(std::vector<char>& bytes, size_t begin, size_t end) { return {bytes.data() + begin, end - begin}; }

TEST_F(LinkTest, BothKnowWhoIsThere) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  EXPECT_EQ(a_->peer(), HostNumber(1));
  EXPECT_EQ(b_->peer(), HostNumber(0));
  EXPECT_THAT(a_->name(), HasSubstr("host 1 (127.0.0.1:"));
  EXPECT_EQ(b_->name(), absl::StrCat("host 0 (", listener_->address().ToString(), ")"));
  EXPECT_EQ(b_->health().state, State::kAlive);
}

// Frames of all sizes, in pieces at both ends, both ways at once.
TEST_F(LinkTest, FramesArriveWholeAndInOrder) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  constexpr int kFrames = 300;
  const auto payload = [seed](int way, int i) {
    std::mt19937 random(seed + static_cast<unsigned>(2 * i + way));
    const size_t sizes[] = {0, 1, 47, 4096, 16384, 16385, 100000, 1000000};
    std::vector<char> bytes(sizes[random() % 8]);
    for (size_t at = 0; at < bytes.size(); at += 61) bytes[at] = static_cast<char>(random());
    return bytes;
  };
  const auto send = [&](Link* link, int way) {
    std::mt19937 random(seed);
    for (int i = 0; i < kFrames;) {
      std::vector<std::vector<char>> bytes;
      std::vector<std::vector<iovec>> parts;
      std::vector<LinkFrame> frames;
      const int batch = 1 + static_cast<int>(random() % 5);
      for (int k = 0; k < batch && i < kFrames; ++k, ++i) bytes.push_back(payload(way, i));
      parts.resize(bytes.size());
      for (size_t k = 0; k < bytes.size(); ++k) {
        const size_t cut = bytes[k].empty() ? 0 : random() % bytes[k].size();
        parts[k] = {Part(bytes[k], 0, cut), Part(bytes[k], cut, bytes[k].size())};
        frames.push_back(
            {Header(9, static_cast<uint32_t>(i) - static_cast<uint32_t>(bytes.size() - k)), parts[k]});
      }
      EXPECT_TRUE(link->SendBatch(frames).ok());
    }
  };
  const auto receive = [&](Link* link, int way) {
    std::mt19937 random(seed);
    for (int i = 0; i < kFrames; ++i) {
      FrameHeader header;
      ASSERT_TRUE(link->Receive(&header).ok());
      const std::vector<char> want = payload(way, i);
      ASSERT_EQ(header.stream, i);
      ASSERT_EQ(header.length, want.size());
      if (i % 7 == 3) {
        ASSERT_TRUE(link->Skip(header.length).ok());
        continue;
      }
      std::vector<char> got(want.size());
      const size_t cut = want.empty() ? 0 : random() % want.size();
      ASSERT_TRUE(link->ReceiveInto(got.data(), cut).ok());
      ASSERT_TRUE(link->ReceiveInto(got.data() + cut, got.size() - cut).ok());
      ASSERT_EQ(got, want);
    }
  };
  std::thread threads[] = {std::thread(send, a_.get(), 0), std::thread(send, b_.get(), 1),
                           std::thread(receive, a_.get(), 1)};
  receive(b_.get(), 0);
  for (std::thread& t : threads) t.join();
  EXPECT_GT(a_->bytes_sent(), kFrames * 48);
}

TEST_F(LinkTest, MoreFramesThanOneCallTakes) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::vector<LinkFrame> frames(3000, LinkFrame{Header(1), {}});
  std::thread sender([&] { EXPECT_TRUE(a_->SendBatch(frames).ok()); });
  FrameHeader header;
  for (size_t i = 0; i < frames.size(); ++i) ASSERT_TRUE(b_->Receive(&header).ok());
  sender.join();
}

TEST_F(LinkTest, APayloadIsTakenWhole) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  std::vector<char> bytes(100);
  const iovec part = Part(bytes, 0, 100);
  ASSERT_TRUE(a_->Send(Header(1), {&part, 1}).ok());
  FrameHeader header;
  ASSERT_TRUE(b_->Receive(&header).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(b_->ReceiveInto(bytes.data(), 101)));
  ASSERT_TRUE(b_->ReceiveInto(bytes.data(), 99).ok());
  const absl::Status early = b_->Receive(&header);
  EXPECT_TRUE(absl::IsFailedPrecondition(early));
  EXPECT_THAT(early.message(), HasSubstr("1 bytes of the last frame"));
  EXPECT_TRUE(b_->Skip(1).ok());
}

TEST_F(LinkTest, AClosedConnectionIsNamedAtOnce) {
  Inbox<LinkHealth> heard;
  LinkOptions options;
  options.on_health = [&heard](const LinkHealth& h) { heard.Put(h); };
  ASSERT_NO_FATAL_FAILURE(Connect({}, options));
  std::vector<char> bytes(100);
  const iovec part = Part(bytes, 0, 100);
  ASSERT_TRUE(a_->Send(Header(1), {&part, 1}).ok());
  a_.reset();
  // Heard by the link's own thread, though nobody receives; what was sent before is still there.
  const LinkHealth health = heard.Next();
  EXPECT_EQ(health.state, State::kClosed);
  EXPECT_EQ(health.words, b_->name() + " closed the connection");
  FrameHeader header;
  ASSERT_TRUE(b_->Receive(&header).ok());
  ASSERT_TRUE(b_->ReceiveInto(bytes.data(), 100).ok());
  const absl::Status end = b_->Receive(&header);
  EXPECT_TRUE(absl::IsUnavailable(end)) << end;
  EXPECT_THAT(end.message(), HasSubstr(b_->name()));
  EXPECT_TRUE(absl::IsUnavailable(b_->Send(Header(1))));
  EXPECT_EQ(b_->health().state, State::kClosed);
}

TEST_F(LinkTest, APeerThatIsKilledIsKnownAtOnce) {
  Listen();
  TestProcess peer([this] {
    absl::StatusOr<std::unique_ptr<Link>> link = Dial();
    if (!link.ok()) return 1;
    FrameHeader header;
    (void)(*link)->Receive(&header);
    return 0;
  });
  std::unique_ptr<Link> link = links_.Next();
  peer.Kill();
  FrameHeader header;
  EXPECT_TRUE(absl::IsUnavailable(link->Receive(&header)));
}

TEST_F(LinkTest, AbortEndsCallsInProgress) {
  Inbox<LinkHealth> heard;
  LinkOptions options;
  options.on_health = [&heard](const LinkHealth& h) { heard.Put(h); };
  ASSERT_NO_FATAL_FAILURE(Connect({}, options));
  absl::Status received, sent;
  std::thread receiver([&] {
    FrameHeader header;
    received = b_->Receive(&header);
  });
  std::thread sender([&] {
    std::vector<char> bytes(1 << 20);
    const iovec part = Part(bytes, 0, bytes.size());
    do {
      sent = b_->Send(Header(1), {&part, 1});  // until nothing more fits: nobody reads
    } while (sent.ok());
  });
  // The sender has begun.
  FrameHeader header;
  ASSERT_TRUE(a_->Receive(&header).ok());
  b_->Abort("the job ends");
  b_->Abort("a second time");
  receiver.join();
  sender.join();
  for (const absl::Status& s : {received, sent}) {
    EXPECT_TRUE(absl::IsCancelled(s)) << s;
    EXPECT_EQ(s.message(), b_->name() + ": the job ends");
  }
  EXPECT_EQ(heard.Next().words, b_->name() + ": the job ends");
  EXPECT_TRUE(absl::IsCancelled(b_->Send(Header(1))));
}

TEST_F(LinkTest, MemoryThatIsNotMappedIsAnError) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  void* const gone = ::mmap(nullptr, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(gone, MAP_FAILED);
  const iovec part = {gone, 1 << 20};
  const absl::Status s = a_->Send(Header(1), {&part, 1});
  EXPECT_TRUE(absl::IsInvalidArgument(s)) << s;
  EXPECT_THAT(s.message(), HasSubstr("not mapped"));
  ::munmap(gone, 1 << 20);
}

TEST_F(LinkTest, ASilentPeerIsSuspectUntilItIsHeard) {
  Inbox<LinkHealth> heard;
  LinkListener::Options options;
  options.link.liveness = {absl::Milliseconds(10), absl::Milliseconds(60)};
  options.link.on_health = [&heard](const LinkHealth& h) { heard.Put(h); };
  Listen(std::move(options));
  UniqueFd silent = Through();
  std::unique_ptr<Link> link = links_.Next();
  const LinkHealth suspect = heard.Next();
  EXPECT_EQ(suspect.state, State::kSuspect);
  EXPECT_GE(suspect.silence, absl::Milliseconds(60));
  EXPECT_THAT(suspect.words, AllOf(HasSubstr(link->name()), HasSubstr("has said nothing for")));
  // Meanwhile the other side hears heartbeats.
  char bytes[kFrameHeaderBytes];
  ASSERT_EQ(::recv(silent.get(), bytes, sizeof(bytes), MSG_WAITALL), kFrameHeaderBytes);
  EXPECT_EQ(DecodeFrameHeader(bytes, 0)->type, kHeartbeatFrame);
  // One byte is a sign of life, and nothing was closed.
  FrameHeader header = Header(5);
  EncodeFrameHeader(header, bytes);
  Say(silent, std::string(bytes, 1));
  EXPECT_EQ(heard.Next().state, State::kAlive);
  Say(silent, std::string(bytes + 1, sizeof(bytes) - 1));
  ASSERT_TRUE(link->Receive(&header).ok());
  EXPECT_EQ(header.type, 5);
}

TEST_F(LinkTest, HeartbeatsAreNotSeenByWhoReceives) {
  LinkOptions busy;
  busy.liveness.heartbeat = absl::Milliseconds(1);
  ASSERT_NO_FATAL_FAILURE(Connect(busy, busy));
  while (a_->bytes_sent() < 20 * 48) std::this_thread::yield();
  ASSERT_TRUE(a_->Send(Header(7)).ok());
  FrameHeader header;
  ASSERT_TRUE(b_->Receive(&header).ok());
  EXPECT_EQ(header.type, 7);
  EXPECT_GE(b_->bytes_received(), 21 * 48);
}

TEST_F(LinkTest, AHeaderThatAnnouncesTooMuchEndsTheLink) {
  LinkListener::Options options;
  options.link.max_payload = 1000;
  Listen(std::move(options));
  for (const uint64_t length : {uint64_t{1001}, ~uint64_t{0}}) {
    UniqueFd fd = Through();
    std::unique_ptr<Link> link = links_.Next();
    char bytes[kFrameHeaderBytes];
    FrameHeader header = Header(5);
    header.length = length;
    EncodeFrameHeader(header, bytes);
    Say(fd, std::string(bytes, sizeof(bytes)));
    const absl::Status s = link->Receive(&header);
    EXPECT_TRUE(absl::IsResourceExhausted(s)) << s;
    EXPECT_THAT(s.message(), AllOf(HasSubstr(link->name()), HasSubstr(absl::StrCat(length))));
    AwaitClose(fd);
    EXPECT_EQ(link->Receive(&header), s);
  }
}

TEST_F(LinkTest, NoiseAfterTheHandshakeEndsTheLink) {
  Listen();
  UniqueFd fd = Through();
  std::unique_ptr<Link> link = links_.Next();
  Say(fd, std::string(100, 'x'));
  FrameHeader header;
  EXPECT_TRUE(absl::IsDataLoss(link->Receive(&header)));
}

TEST_F(LinkTest, NobodyThere) {
  Listen();
  const SocketAddress was = listener_->address();
  listener_.reset();
  const absl::Status s = Link::Dial({{"127.0.0.1", was.port()}, 0, SecretOf('s'), &there_}, Soon()).status();
  EXPECT_TRUE(absl::IsUnavailable(s)) << s;
  EXPECT_THAT(s.message(), HasSubstr(was.ToString()));
}

TEST_F(LinkTest, WhoDoesNotAnswerIsGivenUp) {
  UniqueFd mute(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const SocketAddress any = ResolveOne({"127.0.0.1", 0}).value();
  ASSERT_EQ(::bind(mute.get(), any.get(), any.size()), 0);
  ASSERT_EQ(::listen(mute.get(), 1), 0);
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  ::getsockname(mute.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  const SocketAddress at(reinterpret_cast<sockaddr*>(&bound), size);
  const absl::Status s =
      Link::Dial({{"127.0.0.1", at.port()}, 0, SecretOf('s'), &there_}, SteadyNow() + absl::Milliseconds(50))
          .status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(s)) << s;
  EXPECT_THAT(s.message(), HasSubstr(at.ToString()));
}

}  // namespace
}  // namespace sherd::runtime

#include "runtime/link_listener.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/test_links.h"

namespace sherd::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LinkListenerTest : public TestLinks {};

TEST_F(LinkListenerTest, AWrongSecretIsRefusedAndToldOnce) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int i = 0; i < 3; ++i) {
    const absl::Status s = Dial('x').status();
    EXPECT_TRUE(absl::IsUnauthenticated(s)) << s;
    EXPECT_THAT(s.message(), AllOf(HasSubstr(listener_->address().ToString()), HasSubstr("secret file")));
  }
  const LinkRefusal refusal = refused_.Next();
  EXPECT_TRUE(absl::IsUnauthenticated(refusal.why));
  EXPECT_THAT(refusal.words, AllOf(HasSubstr(refusal.address), HasSubstr("does not know the job's secret")));
  // Nobody was disturbed, and nobody else was told.
  ASSERT_TRUE(a_->Send(Header(7)).ok());
  FrameHeader header;
  ASSERT_TRUE(b_->Receive(&header).ok());
  ASSERT_TRUE(Dial().ok());
  links_.Next();
  EXPECT_EQ(refused_.size(), 1);
}

TEST_F(LinkListenerTest, AStaleIncarnationIsTold) {
  Listen();
  LinkIdentity newer = HostNumber(1);
  newer.incarnation = 2;
  ASSERT_TRUE(here_.Admit(newer).ok());
  const absl::Status s = Dial().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(s)) << s;
  EXPECT_THAT(s.message(), HasSubstr("incarnation 1 of host 1"));
  EXPECT_THAT(refused_.Next().words, HasSubstr("incarnation 1 of host 1"));
}

TEST_F(LinkListenerTest, AnotherHostThanExpectedAnswers) {
  Listen();
  const absl::Status s =
      Link::Dial({{"127.0.0.1", listener_->address().port()}, 2, SecretOf('s'), &there_}, Soon()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(s)) << s;
  EXPECT_THAT(s.message(), HasSubstr("it is host 0"));
}

TEST_F(LinkListenerTest, AScannersBytesAreClosedAtOnce) {
  LinkListener::Options options;
  options.handshake_limit = absl::Hours(1);
  Listen(std::move(options));
  UniqueFd scanner = Raw();
  Say(scanner, "GET / HTTP/1.0\r\n\r\n");
  AwaitClose(scanner);
  const LinkRefusal refusal = refused_.Next();
  EXPECT_THAT(refusal.words, AllOf(HasSubstr("127.0.0.1:"), HasSubstr("GET / HT")));
  EXPECT_TRUE(Dial().ok());
}

TEST_F(LinkListenerTest, WhoSaysNothingOrLittleIsClosed) {
  LinkListener::Options options;
  options.handshake_limit = absl::Milliseconds(100);
  Listen(std::move(options));
  UniqueFd silent = Raw(), slow = Raw();
  Say(slow, "SHE");
  AwaitClose(silent);
  AwaitClose(slow);
  EXPECT_THAT(refused_.Next().words, HasSubstr("did not finish its handshake in 100ms"));
}

TEST_F(LinkListenerTest, ManyWhoSayNothingKeepNobodyOut) {
  LinkListener::Options options;
  options.handshake_limit = absl::Hours(1);
  options.pending_limit = 4;
  Listen(std::move(options));
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 40; ++i) silent.push_back(Raw());
  EXPECT_TRUE(Dial().ok());
  for (int i = 0; i < 36; ++i) AwaitClose(silent[static_cast<size_t>(i)]);
}

TEST_F(LinkListenerTest, ListenersSayWhatIsWrong) {
  Listen();
  LinkListener::Options options;
  options.address = listener_->address();
  options.admission = &here_;
  EXPECT_THAT(LinkListener::Start(options).status().message(), HasSubstr("--secret-file"));
  options.secret = SecretOf('s');
  EXPECT_TRUE(absl::IsAlreadyExists(LinkListener::Start(options).status()));
  options.address = ResolveOne({"0.0.0.0", 0}).value();
  EXPECT_THAT(LinkListener::Start(options).status().message(), HasSubstr("0.0.0.0:0"));
  options.address = ResolveOne({"192.0.2.77", 0}).value();
  options.allow_remote = true;
  EXPECT_TRUE(absl::IsInvalidArgument(LinkListener::Start(options).status()));
}

}  // namespace
}  // namespace sherd::runtime

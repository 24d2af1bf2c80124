#include "runtime/link_handshake.h"

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;
using Role = LinkHandshake::Role;

const char kJob[] = "0a1b2c3d-0000-4000-8000-000000000001";

absl::Status Anyone(const LinkIdentity&) { return absl::OkStatus(); }

Secret SecretOf(char c) { return Secret::Of(std::string(32, c)).value(); }

LinkHandshake Make(Role role, char secret = 's', LinkHandshake::Admit admit = Anyone, uint8_t nonce = 0) {
  Digest256 n;
  n.fill(nonce != 0 ? nonce : role == Role::kDialer ? 1 : 2);
  const uint32_t host = role == Role::kDialer ? 1 : 0;
  return LinkHandshake(role, SecretOf(secret), {kJob, host, 10 + host, 3, 4}, n, std::move(admit));
}

struct Ends {
  absl::Status dialer, listener;
};

// What each side makes of it, when `tamper` may change what travels (its number, the bytes).
Ends Talk(
    LinkHandshake& dialer, LinkHandshake& listener,
    const std::function<void(int, std::string*)>& tamper = [](int, std::string*) {}) {
  Ends ends = {absl::UnknownError("not over"), absl::UnknownError("not over")};
  std::string to_listener = dialer.First(), to_dialer = listener.First();
  tamper(0, &to_listener);
  int number = 1;
  bool listening = true, dialing = true;
  while ((listening && !to_listener.empty()) || (dialing && !to_dialer.empty())) {
    const bool to_there = listening && !to_listener.empty();
    LinkHandshake& side = to_there ? listener : dialer;
    std::string& in = to_there ? to_listener : to_dialer;
    std::string& out = to_there ? to_dialer : to_listener;
    const size_t wants = side.wants();
    EXPECT_LE(wants, LinkHandshake::kLongestMessage);
    if (wants == 0 || in.size() < wants) break;
    std::string answer;
    const absl::Status s = side.Take(in.substr(0, wants), &answer);
    in.erase(0, wants);
    if (!answer.empty()) tamper(number++, &answer);
    out += answer;
    if (!s.ok() || side.done()) {
      (to_there ? ends.listener : ends.dialer) = s;
      (to_there ? listening : dialing) = false;
    }
  }
  return ends;
}

TEST(LinkHandshake, BothLearnWhoIsThere) {
  LinkHandshake dialer = Make(Role::kDialer), listener = Make(Role::kListener);
  const Ends ends = Talk(dialer, listener);
  EXPECT_TRUE(ends.dialer.ok()) << ends.dialer;
  EXPECT_TRUE(ends.listener.ok()) << ends.listener;
  EXPECT_TRUE(dialer.done() && listener.done());
  EXPECT_EQ(dialer.peer(), (LinkIdentity{kJob, 0, 10, 3, 4}));
  EXPECT_EQ(listener.peer(), (LinkIdentity{kJob, 1, 11, 3, 4}));
}

TEST(LinkHandshake, AWrongSecretOnEitherSide) {
  LinkHandshake dialer = Make(Role::kDialer, 'x'), listener = Make(Role::kListener);
  const Ends ends = Talk(dialer, listener);
  EXPECT_TRUE(absl::IsUnauthenticated(ends.listener)) << ends.listener;
  EXPECT_TRUE(absl::IsUnauthenticated(ends.dialer)) << ends.dialer;
  EXPECT_THAT(ends.dialer.message(), HasSubstr("secret file"));
}

// Who listens without the secret says what it likes: it cannot prove it.
TEST(LinkHandshake, AListenerWithoutTheSecretIsNotBelieved) {
  LinkHandshake dialer = Make(Role::kDialer), listener = Make(Role::kListener);
  const Ends ends = Talk(dialer, listener, [](int number, std::string* bytes) {
    if (number == 3) std::fill(bytes->end() - 32, bytes->end(), '\0');
  });
  EXPECT_TRUE(absl::IsUnauthenticated(ends.dialer)) << ends.dialer;
}

TEST(LinkHandshake, ARefusalIsSaidAndNotSecret) {
  LinkHandshake dialer = Make(Role::kDialer);
  LinkHandshake listener = Make(Role::kListener, 's', [](const LinkIdentity& peer) {
    EXPECT_EQ(peer.host, 1);
    return absl::FailedPreconditionError("stale epoch 3");
  });
  const Ends ends = Talk(dialer, listener);
  EXPECT_TRUE(absl::IsFailedPrecondition(ends.listener));
  EXPECT_TRUE(absl::IsFailedPrecondition(ends.dialer));
  EXPECT_THAT(ends.dialer.message(), HasSubstr("it refused this host: stale epoch 3"));
  EXPECT_FALSE(dialer.done());
}

TEST(LinkHandshake, TheDialerAdmitsToo) {
  LinkHandshake dialer =
      Make(Role::kDialer, 's', [](const LinkIdentity&) { return absl::FailedPreconditionError("old"); });
  LinkHandshake listener = Make(Role::kListener);
  EXPECT_TRUE(absl::IsFailedPrecondition(Talk(dialer, listener).dialer));
  EXPECT_FALSE(dialer.done());
}

// Every bit of every message matters: identities, nonces, proofs, verdict.
TEST(LinkHandshake, AnyChangeIsNoticed) {
  for (int message = 0; message < 4; ++message) {
    for (size_t byte = 0; byte < 300; ++byte) {
      LinkHandshake dialer = Make(Role::kDialer), listener = Make(Role::kListener);
      bool changed = false;
      const Ends ends = Talk(dialer, listener, [&](int number, std::string* bytes) {
        if (number != message || byte >= bytes->size()) return;
        (*bytes)[byte] = static_cast<char>((*bytes)[byte] ^ 1);
        changed = true;
      });
      if (!changed) break;
      EXPECT_FALSE(ends.dialer.ok()) << "message " << message << ", byte " << byte;
      // The last message is the listener's: it cannot know.
      EXPECT_EQ(ends.listener.ok(), message == 3) << "message " << message << ", byte " << byte;
    }
  }
}

// A stranger sends back to the dialer what it says itself.
TEST(LinkHandshake, NothingIsReflected) {
  LinkHandshake dialer = Make(Role::kDialer);
  std::string proof;
  const std::string hello = dialer.First();
  ASSERT_TRUE(dialer.Take(hello.substr(0, 8), &proof).ok());
  ASSERT_TRUE(dialer.Take(hello.substr(8), &proof).ok());
  ASSERT_EQ(proof.size(), 32);
  std::string none;
  const std::string verdict = std::string(dialer.wants() - proof.size(), '\0') + proof;
  EXPECT_TRUE(absl::IsUnauthenticated(dialer.Take(verdict, &none)));
}

// What one connection proved proves nothing on another: the nonces differ.
TEST(LinkHandshake, NothingIsReplayed) {
  std::string hello, proof;
  {
    LinkHandshake dialer = Make(Role::kDialer), listener = Make(Role::kListener);
    const Ends ends = Talk(dialer, listener, [&](int number, std::string* bytes) {
      if (number == 0) hello = *bytes;
      if (number == 2) proof = *bytes;
    });
    ASSERT_TRUE(ends.listener.ok());
  }
  LinkHandshake again = Make(Role::kListener, 's', Anyone, 3);
  std::string answer;
  ASSERT_TRUE(again.Take(hello.substr(0, 8), &answer).ok());
  ASSERT_TRUE(again.Take(hello.substr(8), &answer).ok());
  EXPECT_TRUE(absl::IsUnauthenticated(again.Take(proof, &answer)));
  EXPECT_EQ(again.wants(), 0);
}

TEST(LinkHandshake, StrangersAreRefusedAtTheirFirstBytes) {
  const std::vector<std::string> strangers = {"GET / HT", "SSH-2.0-", std::string(8, '\0'), "SHERDLK\2",
                                              "\x16\x03\x01\x02\x06\x01\x01\xfc"};
  for (const std::string& bytes : strangers) {
    LinkHandshake listener = Make(Role::kListener);
    std::string padded = bytes, answer;
    padded.resize(8);
    ASSERT_EQ(listener.wants(), 8);
    const absl::Status s = listener.Take(padded, &answer);
    EXPECT_TRUE(absl::IsInvalidArgument(s)) << bytes;
    EXPECT_EQ(answer, "");
    for (char c : s.message()) EXPECT_TRUE(c >= ' ' && c <= '~');
  }
}

TEST(LinkHandshake, NoiseNeverGetsThrough) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 2000; ++i) {
    LinkHandshake side = Make(i % 2 == 0 ? Role::kListener : Role::kDialer);
    std::string bytes = Make(i % 2 == 0 ? Role::kDialer : Role::kListener).First(), answer;
    bytes = "SHERDLK\1";
    absl::Status s = side.Take(bytes, &answer);
    while (s.ok() && !side.done()) {
      bytes.resize(side.wants());
      for (char& c : bytes) c = static_cast<char>(random() % 4 == 0 ? random() : 'a');
      s = side.Take(bytes, &answer);
    }
    EXPECT_FALSE(s.ok());
  }
}

}  // namespace
}  // namespace sherd::runtime

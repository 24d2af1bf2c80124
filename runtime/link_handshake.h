// How two hosts prove to each other that they know the job's secret before a byte of data flows. A state
// machine without socket or clock: whoever drives it moves the bytes.
//
//   LinkHandshake handshake(LinkHandshake::Role::kDialer, secret, self, nonce, admit);
//   send(handshake.First());
//   while (!handshake.done()) {
//     read exactly handshake.wants() bytes;
//     absl::Status s = handshake.Take(bytes, &answer);
//     send(answer);                        // also when s is an error: the reason, for the other side
//     if (!s.ok()) close;
//   }
//
// Messages, each of a fixed size, so nothing a stranger sends decides how much is read or allocated:
//
//   dialer -> listener   HELLO      magic, identity, nonce
//   listener -> dialer   CHALLENGE  magic, identity, nonce
//   dialer -> listener   PROOF      HMAC(secret, "dialer" HELLO CHALLENGE)
//   listener -> dialer   VERDICT    code, reason, HMAC(secret, "listener" HELLO CHALLENGE code reason)
//
// Challenge-response in both directions (as in ISO/IEC 9798-4, three passes and a verdict): each proof covers
// both nonces, both identities and the role, so none can be replayed, moved to another pair of hosts or
// reflected. The dialer proves itself first. The secret itself never travels. What follows on the connection
// is neither encrypted nor signed: a network whose middle is hostile needs a tunnel.
//
// Thread-compatible.
#ifndef SHERD_RUNTIME_LINK_HANDSHAKE_H_
#define SHERD_RUNTIME_LINK_HANDSHAKE_H_

#include <cstddef>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/hmac.h"
#include "runtime/link_protocol.h"
#include "runtime/secret_file.h"

namespace sherd::runtime {

class LinkHandshake {
 public:
  enum class Role { kDialer, kListener };
  // Asked once, about a peer that knows the secret: an error refuses it.
  using Admit = std::function<absl::Status(const LinkIdentity&)>;

  // `nonce`: random, never used before. REQUIRES: self.job_uuid has kJobUuidBytes characters.
  LinkHandshake(Role role, Secret secret, const LinkIdentity& self, const Digest256& nonce, Admit admit);

  // What the dialer sends before it has heard anything; empty for the listener.
  std::string First() const { return role_ == Role::kDialer ? mine_ : std::string(); }

  // Bytes of the next message from the other side; 0 when done. At most kLongestMessage.
  size_t wants() const;
  static constexpr size_t kLongestMessage = 512;

  // Takes `bytes`, exactly wants() of them; `answer` is what to send then, also after an error.
  //   INVALID_ARGUMENT   it does not speak this protocol, or another version of it
  //   UNAUTHENTICATED    it does not know the secret, or says that this side does not
  //   else               why the peer was not admitted, here or (with its words) there
  absl::Status Take(absl::string_view bytes, std::string* answer);

  bool done() const { return state_ == State::kDone; }
  // REQUIRES: done().
  const LinkIdentity& peer() const { return peer_; }

 private:
  // Of what comes next. The magic is looked at alone, so that others are refused at their first bytes.
  enum class State { kMagic, kIntroduction, kProof, kVerdict, kDone, kFailed };

  absl::Status TakeMagic(absl::string_view bytes);
  absl::Status TakeIntroduction(absl::string_view bytes, std::string* answer);
  absl::Status TakeProof(absl::string_view bytes, std::string* answer);
  absl::Status TakeVerdict(absl::string_view bytes);
  Digest256 Mac(absl::string_view role, absl::string_view more) const;

  const Role role_;
  const Secret secret_;
  const Admit admit_;
  std::string mine_, theirs_;  // introductions: HELLO and CHALLENGE
  State state_ = State::kMagic;
  LinkIdentity peer_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_HANDSHAKE_H_

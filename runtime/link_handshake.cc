#include "runtime/link_handshake.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sherd::runtime {
namespace {

constexpr absl::string_view kMagic("SHERDLK\1", 8);  // the last byte is the version
constexpr size_t kIntroductionBytes = 8 + kIdentityBytes + 32;
constexpr size_t kProofBytes = 32;
constexpr size_t kReasonBytes = 256;
constexpr size_t kVerdictBytes = 4 + kReasonBytes + 32;  // code, reason (filled up with zeros), proof
static_assert(kVerdictBytes <= LinkHandshake::kLongestMessage, "");

// Of a VERDICT: one of absl::StatusCode; kOk welcomes. This one comes without proof: who gave none gets none.
constexpr uint32_t kWrongSecret = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);

std::string Printable(absl::string_view text) {
  std::string clean(text.substr(0, std::min(text.find('\0'), text.size())));
  for (char& c : clean) {
    if (c < ' ' || c > '~') c = '?';
  }
  return clean;
}

std::string VerdictBody(uint32_t code, absl::string_view reason) {
  std::string body(4 + kReasonBytes, '\0');
  PutU32(body.data(), code);
  reason = reason.substr(0, kReasonBytes);
  std::copy(reason.begin(), reason.end(), body.begin() + 4);
  return body;
}

}  // namespace

LinkHandshake::LinkHandshake(Role role, Secret secret, const LinkIdentity& self, const Digest256& nonce,
                             Admit admit)
    : role_(role), secret_(std::move(secret)), admit_(std::move(admit)) {
  char identity[kIdentityBytes];
  EncodeIdentity(self, identity);
  mine_ = absl::StrCat(kMagic, absl::string_view(identity, kIdentityBytes), AsBytes(nonce));
}

size_t LinkHandshake::wants() const {
  switch (state_) {
    case State::kMagic:
      return kMagic.size();
    case State::kIntroduction:
      return kIntroductionBytes - kMagic.size();
    case State::kProof:
      return kProofBytes;
    case State::kVerdict:
      return kVerdictBytes;
    case State::kDone:
    case State::kFailed:
      break;
  }
  return 0;
}

absl::Status LinkHandshake::Take(absl::string_view bytes, std::string* answer) {
  answer->clear();
  absl::Status status = absl::InternalError("a handshake takes exactly the bytes it wants");
  if (bytes.size() == wants() && !bytes.empty()) {
    switch (state_) {
      case State::kMagic:
        status = TakeMagic(bytes);
        break;
      case State::kIntroduction:
        status = TakeIntroduction(bytes, answer);
        break;
      case State::kProof:
        status = TakeProof(bytes, answer);
        break;
      case State::kVerdict:
        status = TakeVerdict(bytes);
        break;
      case State::kDone:
      case State::kFailed:
        break;
    }
  }
  if (!status.ok()) state_ = State::kFailed;
  return status;
}

absl::Status LinkHandshake::TakeMagic(absl::string_view bytes) {
  if (bytes.substr(0, 7) != kMagic.substr(0, 7)) {
    return absl::InvalidArgumentError(
        absl::StrCat("it does not speak Sherd's protocol (its first bytes are \"", Printable(bytes), "\")"));
  }
  if (bytes != kMagic) {
    return absl::InvalidArgumentError(absl::StrCat("it speaks version ", static_cast<unsigned char>(bytes[7]),
                                                   " of the protocol, this is ", static_cast<int>(kMagic[7]),
                                                   ": run the same build on all hosts"));
  }
  theirs_ = std::string(bytes);
  state_ = State::kIntroduction;
  return absl::OkStatus();
}

absl::Status LinkHandshake::TakeIntroduction(absl::string_view bytes, std::string* answer) {
  theirs_.append(bytes.data(), bytes.size());
  absl::StatusOr<LinkIdentity> peer = DecodeIdentity(bytes.substr(0, kIdentityBytes));
  if (!peer.ok()) return peer.status();
  peer_ = *std::move(peer);
  if (role_ == Role::kListener) {
    *answer = mine_;
    state_ = State::kProof;
  } else {
    *answer = std::string(AsBytes(Mac("dialer", "")));
    state_ = State::kVerdict;
  }
  return absl::OkStatus();
}

absl::Status LinkHandshake::TakeProof(absl::string_view bytes, std::string* answer) {
  if (!EqualInConstantTime(AsBytes(Mac("dialer", "")), bytes)) {
    *answer = VerdictBody(kWrongSecret, "") + std::string(32, '\0');
    return absl::UnauthenticatedError("it does not know the job's secret");
  }
  const absl::Status admitted = admit_(peer_);
  const std::string body = VerdictBody(static_cast<uint32_t>(admitted.code()), admitted.message());
  *answer = absl::StrCat(body, AsBytes(Mac("listener", body)));
  if (admitted.ok()) state_ = State::kDone;
  return admitted;
}

absl::Status LinkHandshake::TakeVerdict(absl::string_view bytes) {
  const absl::string_view body = bytes.substr(0, 4 + kReasonBytes);
  const uint32_t code = GetU32(body.data());
  if (!EqualInConstantTime(AsBytes(Mac("listener", body)), bytes.substr(body.size()))) {
    return absl::UnauthenticatedError(
        code == kWrongSecret ? "it does not take this host's secret: both need the same secret file"
                             : "it does not know the job's secret");
  }
  if (code != 0) {
    const bool known = code <= static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
    return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                        absl::StrCat("it refused this host: ", Printable(body.substr(4))));
  }
  if (absl::Status s = admit_(peer_); !s.ok()) return s;
  state_ = State::kDone;
  return absl::OkStatus();
}

Digest256 LinkHandshake::Mac(absl::string_view role, absl::string_view more) const {
  const std::string& hello = role_ == Role::kDialer ? mine_ : theirs_;
  const std::string& challenge = role_ == Role::kDialer ? theirs_ : mine_;
  // Every part but the last has one size for its role, so no two lists of parts give the same bytes.
  return HmacSha256(secret_.bytes(), absl::StrCat("sherd link 1 ", role, "\n", hello, challenge, more));
}

}  // namespace sherd::runtime

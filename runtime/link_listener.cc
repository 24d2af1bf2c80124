#include "runtime/link_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "runtime/hmac.h"
#include "runtime/link_handshake.h"

namespace sherd::runtime {
namespace {

Digest256 Nonce() {
  Digest256 nonce;
  FillRandom(nonce.data(), nonce.size());
  return nonce;
}

absl::StatusOr<UniqueFd> Listen(const SocketAddress& address) {
  UniqueFd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "socket");
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (address.family() == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
  if (::bind(fd.get(), address.get(), address.size()) == 0 && ::listen(fd.get(), 64) == 0) return fd;
  const std::string what = absl::StrCat("cannot listen on ", address.ToString(), ": ", std::strerror(errno));
  if (errno == EADDRINUSE)
    return absl::AlreadyExistsError(absl::StrCat(what, "; choose another port, or 0 for any"));
  return absl::InvalidArgumentError(what);
}

}  // namespace

// A connection that is not through its handshake.
struct LinkListener::Pending {
  Pending(UniqueFd socket, SocketAddress address, absl::Duration deadline, LinkHandshake handshake)
      : socket(std::move(socket)), address(address), deadline(deadline), handshake(std::move(handshake)) {}

  UniqueFd socket;
  SocketAddress address;
  absl::Duration deadline;  // monotonic
  LinkHandshake handshake;
  char message[LinkHandshake::kLongestMessage];
  size_t have = 0;  // bytes of the message that has begun
};

absl::StatusOr<std::unique_ptr<LinkListener>> LinkListener::Start(Options options) {
  if (!options.secret.has_value() || options.admission == nullptr)
    return absl::InvalidArgumentError("data connections need the job's secret: say --secret-file");
  if (absl::Status s = CheckMayListen(options.address, options.allow_remote); !s.ok()) return s;
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.ok()) return absl::ErrnoToStatus(errno, "eventfd");
  absl::StatusOr<UniqueFd> socket = Listen(options.address);
  if (!socket.ok()) return socket.status();
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  if (::getsockname(socket->get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return absl::ErrnoToStatus(errno, "getsockname");
  const SocketAddress address(reinterpret_cast<const sockaddr*>(&bound), size);
  return std::unique_ptr<LinkListener>(
      new LinkListener(std::move(options), address, *std::move(socket), std::move(stop)));
}

LinkListener::LinkListener(Options options, SocketAddress address, UniqueFd socket, UniqueFd stop)
    : options_(std::move(options)), address_(address), socket_(std::move(socket)), stop_(std::move(stop)) {
  thread_ = std::thread([this] { Run(); });
}

LinkListener::~LinkListener() {
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

void LinkListener::Run() {
  std::vector<pollfd> fds;
  for (;;) {
    fds.assign({{stop_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}});
    absl::Duration wake = absl::InfiniteDuration();
    for (const Pending& peer : pending_) {
      fds.push_back({peer.socket.get(), POLLIN, 0});
      wake = std::min(wake, peer.deadline);
    }
    const absl::Duration left = wake - SystemClock().Monotonic();
    const int timeout =
        pending_.empty() ? -1 : static_cast<int>(std::max<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0));
    if (::poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) return;
    if (fds[0].revents != 0) return;
    const absl::Duration now = SystemClock().Monotonic();
    size_t i = 2;
    for (auto it = pending_.begin(); it != pending_.end(); ++i) {
      bool keep = fds[i].revents == 0 || Advance(*it);
      if (keep && now >= it->deadline) {
        Refuse(*it,
               absl::DeadlineExceededError(absl::StrCat("it did not finish its handshake in ",
                                                        absl::FormatDuration(options_.handshake_limit))));
        keep = false;
      }
      it = keep ? std::next(it) : pending_.erase(it);
    }
    if (fds[1].revents != 0) Accept();
  }
}

void LinkListener::Accept() {
  sockaddr_storage from = {};
  socklen_t size = sizeof(from);
  UniqueFd fd(
      ::accept4(socket_.get(), reinterpret_cast<sockaddr*>(&from), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.ok()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // The peer stays in the queue and poll would return at once: give the process time to close something.
      pollfd stop = {stop_.get(), POLLIN, 0};
      (void)::poll(&stop, 1, 20);
    }
    return;  // otherwise the peer went away again
  }
  if (pending_.size() >= static_cast<size_t>(std::max(1, options_.pending_limit))) {
    Refuse(pending_.front(),
           absl::ResourceExhaustedError(absl::StrCat("it was the oldest of ", pending_.size(),
                                                     " that had not finished their handshakes")));
    pending_.pop_front();
  }
  LinkAdmission* const admission = options_.admission;
  pending_.emplace_back(
      std::move(fd), SocketAddress(reinterpret_cast<const sockaddr*>(&from), size),
      SystemClock().Monotonic() + options_.handshake_limit,
      LinkHandshake(LinkHandshake::Role::kListener, *options_.secret, admission->self(), Nonce(),
                    [admission](const LinkIdentity& peer) { return admission->Admit(peer); }));
}

bool LinkListener::Advance(Pending& peer) {
  const int fd = peer.socket.get();
  for (;;) {
    const size_t wants = peer.handshake.wants();
    const ssize_t n = ::recv(fd, peer.message + peer.have, wants - peer.have, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) {
      Refuse(peer, absl::UnavailableError(n == 0 ? "it closed the connection before its handshake was over"
                                                 : std::strerror(errno)));
      return false;
    }
    peer.have += static_cast<size_t>(n);
    if (peer.have < wants) continue;
    peer.have = 0;
    std::string answer;
    absl::Status status = peer.handshake.Take(absl::string_view(peer.message, wants), &answer);
    // A few hundred bytes: a socket that has room for nothing is not a host's.
    const bool sent = answer.empty() || ::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL) ==
                                            static_cast<ssize_t>(answer.size());
    if (status.ok() && !sent) status = absl::UnavailableError("it takes no answer");
    if (!status.ok()) {
      Refuse(peer, status);
      return false;
    }
    if (!peer.handshake.done()) continue;
    options_.on_link(
        Link::Adopt(std::move(peer.socket), peer.handshake.peer(), peer.address.ToString(), options_.link));
    return false;
  }
}

void LinkListener::Refuse(const Pending& peer, const absl::Status& why) {
  const absl::optional<int64_t> untold = refusals_.Refused(peer.address.host(), SystemClock().Monotonic());
  if (!untold.has_value() || !options_.on_refused) return;
  LinkRefusal refusal;
  refusal.address = peer.address.ToString();
  refusal.why = why;
  refusal.untold = *untold;
  refusal.words = absl::StrCat("refused a data connection from ", refusal.address, ": ", why.message());
  if (*untold > 0) absl::StrAppend(&refusal.words, " (and ", *untold, " more since the last such line)");
  options_.on_refused(refusal);
}

}  // namespace sherd::runtime

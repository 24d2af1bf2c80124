#include "runtime/link.h"

#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/clock.h"
#include "runtime/hmac.h"
#include "runtime/link_handshake.h"

namespace sherd::runtime {
namespace {

// Linux 6.15; older headers do not name it, older kernels refuse it.
constexpr int kTcpRtoMaxMs = 44;
// A link that was cut is tried again this often at least.
constexpr int kLongestRetryMs = 1000;
// And is given up by TCP only after this long: the kernel counts retries, and 15 of them would be over in as
// many seconds.
constexpr unsigned kGiveUpMs = 15 * 60 * 1000;

// As poll() wants it, rounded up.
int PollMs(absl::Duration left) {
  return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0, 60000));
}

// A connection that broke when time was up is one that did not answer; a refusal is what it was.
absl::Status LateOr(absl::Status status, absl::Time deadline, const std::string& who) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  if (SteadyNow() < deadline) return status;
  return absl::DeadlineExceededError(absl::StrCat(who, " does not answer"));
}

// Waits for `events` on a socket that does not block.
absl::Status AwaitSocket(int fd, short events, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - SteadyNow();
    pollfd p = {fd, events, 0};
    const int n = left <= absl::ZeroDuration() ? 0 : ::poll(&p, 1, PollMs(left));
    if (n > 0) return absl::OkStatus();
    if (n < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    if (SteadyNow() >= deadline) return absl::DeadlineExceededError("no answer in time");
  }
}

absl::StatusOr<UniqueFd> Connect(const SocketAddress& to, absl::Time deadline) {
  UniqueFd fd(::socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "socket");
  int error = ::connect(fd.get(), to.get(), to.size()) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    if (absl::Status s = AwaitSocket(fd.get(), POLLOUT, deadline); !s.ok()) return s;
    socklen_t size = sizeof(error);
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  }
  if (error == ECONNREFUSED) return absl::UnavailableError("nobody listens there");
  if (error != 0) return absl::UnavailableError(std::strerror(error));
  return fd;
}

// Moves exactly `bytes` bytes over a socket that does not block.
template <typename Move>
absl::Status MoveAll(int fd, short events, size_t bytes, absl::Time deadline, Move move) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = move(done);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      return absl::UnavailableError("it closed the connection");
    } else if (errno == EAGAIN || errno == EINTR) {
      if (absl::Status s = AwaitSocket(fd, events, deadline); !s.ok()) return s;
    } else {
      return absl::UnavailableError(std::strerror(errno));
    }
  }
  return absl::OkStatus();
}

absl::Status SendBytes(int fd, absl::string_view bytes, absl::Time deadline) {
  return MoveAll(fd, POLLOUT, bytes.size(), deadline,
                 [&](size_t at) { return ::send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL); });
}

absl::Status Shake(int fd, LinkHandshake& handshake, absl::Time deadline) {
  if (absl::Status s = SendBytes(fd, handshake.First(), deadline); !s.ok()) return s;
  char buffer[LinkHandshake::kLongestMessage];
  while (!handshake.done()) {
    const size_t wants = handshake.wants();
    absl::Status s = MoveAll(fd, POLLIN, wants, deadline,
                             [&](size_t at) { return ::recv(fd, buffer + at, wants - at, 0); });
    if (!s.ok()) return s;
    std::string answer;
    s = handshake.Take(absl::string_view(buffer, wants), &answer);
    const absl::Status sent = SendBytes(fd, answer, deadline);
    if (!s.ok()) return s;
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Link>> Link::Dial(const Place& place, absl::Time deadline,
                                                 LinkOptions options) {
  const std::string who = absl::StrCat("host ", place.host, " (", place.address.ToString(), ")");
  const auto named = [&](const absl::Status& s) {
    return LateOr(absl::Status(s.code(), absl::StrCat(who, ": ", s.message())), deadline, who);
  };
  absl::StatusOr<std::vector<SocketAddress>> addresses = Resolve(place.address);
  if (!addresses.ok()) return named(addresses.status());
  absl::StatusOr<UniqueFd> socket = absl::UnavailableError("no address");
  for (const SocketAddress& to : *addresses) {
    socket = Connect(to, deadline);
    if (socket.ok()) break;
  }
  if (!socket.ok()) return named(socket.status());
  Digest256 nonce;
  FillRandom(nonce.data(), nonce.size());
  LinkHandshake handshake(LinkHandshake::Role::kDialer, place.secret, place.admission->self(), nonce,
                          [&](const LinkIdentity& peer) -> absl::Status {
                            if (peer.host == place.host) return place.admission->Admit(peer);
                            return absl::InvalidArgumentError(
                                absl::StrCat("it is host ", peer.host, ": check the addresses of the hosts"));
                          });
  if (absl::Status s = Shake(socket->get(), handshake, deadline); !s.ok()) return named(s);
  return Adopt(*std::move(socket), handshake.peer(), place.address.ToString(), std::move(options));
}

std::unique_ptr<Link> Link::Adopt(UniqueFd socket, LinkIdentity peer, std::string address,
                                  LinkOptions options) {
  const int fd = socket.get();
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  ::setsockopt(fd, IPPROTO_TCP, kTcpRtoMaxMs, &kLongestRetryMs, sizeof(kLongestRetryMs));
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kGiveUpMs, sizeof(kGiveUpMs));
  if (options.socket_buffer > 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &options.socket_buffer, sizeof(int));
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &options.socket_buffer, sizeof(int));
  }
  return std::unique_ptr<Link>(
      new Link(std::move(socket), std::move(peer), std::move(address), std::move(options)));
}

Link::Link(UniqueFd socket, LinkIdentity peer, std::string address, LinkOptions options)
    : options_(std::move(options)),
      peer_(std::move(peer)),
      name_(absl::StrCat("host ", peer_.host, " (", address, ")")),
      socket_(std::move(socket)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      last_sent_ns_(MonotonicNanos()),
      last_read_ns_(MonotonicNanos()),
      ahead_(new char[kReadAhead]),
      liveness_(options_.liveness, SystemClock().Monotonic()) {
  watch_ = std::thread([this] { Watch(); });
}

Link::~Link() {
  Abort();
  watch_.join();
}

// Holds the right to write to the socket.
class Link::SendTurn {
 public:
  explicit SendTurn(Link* link) : link_(link) {
    // The other one who may have it sends one heartbeat, without blocking.
    while (link_->sending_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  }
  ~SendTurn() { link_->sending_.store(false, std::memory_order_release); }

 private:
  Link* const link_;
};

absl::Status Link::Send(const FrameHeader& header, absl::Span<const iovec> payload) {
  const LinkFrame frame = {header, payload};
  return SendBatch({&frame, 1});
}

absl::Status Link::SendBatch(absl::Span<const LinkFrame> frames) {
  size_t count = 1;
  for (const LinkFrame& f : frames) count += 1 + f.payload.size();
  std::vector<char> headers(frames.size() * kFrameHeaderBytes);
  std::vector<iovec> parts;
  parts.reserve(count);
  SendTurn turn(this);
  const std::string tail = std::exchange(tail_, std::string());
  if (!tail.empty()) parts.push_back({const_cast<char*>(tail.data()), tail.size()});
  for (size_t i = 0; i < frames.size(); ++i) {
    FrameHeader header = frames[i].header;
    header.length = 0;
    for (const iovec& part : frames[i].payload) header.length += part.iov_len;
    char* const bytes = headers.data() + i * kFrameHeaderBytes;
    EncodeFrameHeader(header, bytes);
    parts.push_back({bytes, kFrameHeaderBytes});
    parts.insert(parts.end(), frames[i].payload.begin(), frames[i].payload.end());
  }
  return SendAll(parts.data(), parts.size());
}

absl::Status Link::SendAll(iovec* parts, size_t count) {
  iovec* const end = parts + count;
  while (parts != end) {
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = std::min<size_t>(static_cast<size_t>(end - parts), IOV_MAX);
    const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed("send", errno);
    sent_.fetch_add(n, std::memory_order_relaxed);
    last_sent_ns_.store(MonotonicNanos(), std::memory_order_relaxed);
    for (size_t left = static_cast<size_t>(n); parts != end;) {
      const size_t step = std::min(left, parts->iov_len);
      parts->iov_base = static_cast<char*>(parts->iov_base) + step;
      parts->iov_len -= step;
      left -= step;
      if (parts->iov_len > 0) break;
      ++parts;
    }
  }
  return absl::OkStatus();
}

absl::Status Link::Receive(FrameHeader* header) {
  if (payload_left_ > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name_, ": ", payload_left_, " bytes of the last frame were not taken"));
  }
  for (;;) {
    char bytes[kFrameHeaderBytes];
    if (absl::Status s = Fill(bytes, sizeof(bytes)); !s.ok()) return s;
    absl::StatusOr<FrameHeader> got = DecodeFrameHeader(bytes, options_.max_payload);
    if (got.ok() && got->type == kHeartbeatFrame && got->length > 0)
      got = absl::DataLossError("a heartbeat with payload");
    if (!got.ok())
      return Fail(absl::Status(got.status().code(), absl::StrCat(name_, ": ", got.status().message())));
    if (got->type == kHeartbeatFrame) continue;
    payload_left_ = got->length;
    *header = *got;
    return absl::OkStatus();
  }
}

absl::Status Link::ReceiveInto(void* to, size_t bytes) {
  if (bytes > payload_left_) {
    return absl::FailedPreconditionError(
        absl::StrCat(name_, ": ", bytes, " bytes asked for, the frame has ", payload_left_, " more"));
  }
  if (absl::Status s = Fill(to, bytes); !s.ok()) return s;
  payload_left_ -= bytes;
  return absl::OkStatus();
}

absl::Status Link::Skip(uint64_t bytes) {
  char sink[4096];
  while (bytes > 0) {
    const size_t step = static_cast<size_t>(std::min<uint64_t>(bytes, sizeof(sink)));
    if (absl::Status s = ReceiveInto(sink, step); !s.ok()) return s;
    bytes -= step;
  }
  return absl::OkStatus();
}

absl::Status Link::Fill(void* to, size_t bytes) {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    if (ahead_begin_ < ahead_end_) {
      const size_t step = std::min(bytes, ahead_end_ - ahead_begin_);
      std::memcpy(next, ahead_.get() + ahead_begin_, step);
      ahead_begin_ += step;
      next += step;
      bytes -= step;
      continue;
    }
    // What follows, usually the next header, comes with the same call.
    iovec parts[2] = {{next, bytes}, {ahead_.get(), kReadAhead}};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t n = ::recvmsg(socket_.get(), &message, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed("receive", errno);
    if (n == 0) return Fail(absl::UnavailableError(absl::StrCat(name_, " closed the connection")));
    received_.fetch_add(n, std::memory_order_relaxed);
    last_read_ns_.store(MonotonicNanos(), std::memory_order_relaxed);
    const size_t step = std::min(bytes, static_cast<size_t>(n));
    ahead_begin_ = 0;
    ahead_end_ = static_cast<size_t>(n) - step;
    next += step;
    bytes -= step;
  }
  return absl::OkStatus();
}

absl::Status Link::Failed(absl::string_view doing, int error) {
  if (error == EFAULT) {
    return Fail(absl::InvalidArgumentError(
        absl::StrCat(name_, ": cannot ", doing, ": the memory of the payload is not mapped")));
  }
  return Fail(absl::UnavailableError(absl::StrCat(name_, ": cannot ", doing, ": ", std::strerror(error))));
}

absl::Status Link::Fail(absl::Status why) {
  {
    MutexLock lock(mu_);
    if (has_ended_) return ended_;
    has_ended_ = true;
    ended_ = why;
  }
  // Wakes whoever is in a call; the descriptor stays until the link is destroyed.
  ::shutdown(socket_.get(), SHUT_RDWR);
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  return why;
}

void Link::Abort(const std::string& why) { (void)Fail(absl::CancelledError(absl::StrCat(name_, ": ", why))); }

LinkHealth Link::health() const {
  LinkHealth health;
  MutexLock lock(mu_);
  health.silence = liveness_.silence(SystemClock().Monotonic());
  if (has_ended_) {
    health.state = LinkHealth::State::kClosed;
    health.words = std::string(ended_.message());
  } else if (peer_closed_) {
    health.state = LinkHealth::State::kClosed;
    health.words = absl::StrCat(name_, " closed the connection");
  } else if (liveness_.suspect()) {
    health.state = LinkHealth::State::kSuspect;
    health.words =
        absl::StrFormat("%s has said nothing for %.1f s", name_, absl::ToDoubleSeconds(health.silence));
  } else {
    health.words = absl::StrCat(name_, " is connected");
  }
  return health;
}

// The peer closed or reset the connection; what it sent before may still wait to be received.
bool Link::PeerClosed() {
  pollfd p = {socket_.get(), POLLRDHUP, 0};
  return ::poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

// When bytes came last: as the kernel knows, whether anybody reads them or not.
void Link::NoteHeard(absl::Duration now) {
  absl::Duration heard = absl::Nanoseconds(last_read_ns_.load(std::memory_order_relaxed));
  tcp_info info = {};
  socklen_t size = sizeof(info);
  if (::getsockopt(socket_.get(), IPPROTO_TCP, TCP_INFO, &info, &size) == 0)
    heard = std::max(heard, now - absl::Milliseconds(info.tcpi_last_data_recv));
  // With a full buffer the kernel takes nothing more: that is silence of this side's making.
  int unread = 0;
  if (::ioctl(socket_.get(), FIONREAD, &unread) == 0 && unread > 0) heard = now;
  liveness_.Heard(heard);
}

void Link::TryHeartbeat() {
  // Whoever sends says more than a heartbeat does.
  if (sending_.exchange(true, std::memory_order_acquire)) return;
  if (tail_.empty()) {
    FrameHeader header;
    header.type = kHeartbeatFrame;
    tail_.resize(kFrameHeaderBytes);
    EncodeFrameHeader(header, tail_.data());
  }
  const ssize_t n = ::send(socket_.get(), tail_.data(), tail_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n > 0) {
    tail_.erase(0, static_cast<size_t>(n));
    sent_.fetch_add(n, std::memory_order_relaxed);
    last_sent_ns_.store(MonotonicNanos(), std::memory_order_relaxed);
  }
  // Errors are found by whoever sends or receives next, and by PeerClosed().
  sending_.store(false, std::memory_order_release);
}

void Link::Watch() {
  const auto tell = [this](LinkHealth health) {
    if (options_.on_health) options_.on_health(health);
  };
  for (;;) {
    const absl::Duration now = SystemClock().Monotonic();
    LinkLiveness::Due due;
    {
      MutexLock lock(mu_);
      if (has_ended_) break;
      NoteHeard(now);
      liveness_.Sent(absl::Nanoseconds(last_sent_ns_.load(std::memory_order_relaxed)));
      due = liveness_.Tick(now);
    }
    if (due.heartbeat) TryHeartbeat();
    if (due.changed) tell(health());
    pollfd fds[2] = {{socket_.get(), POLLRDHUP, 0}, {wake_.get(), POLLIN, 0}};
    (void)::poll(fds, 2, PollMs(due.next - SystemClock().Monotonic()));
    if (fds[0].revents != 0 && PeerClosed()) {
      MutexLock lock(mu_);
      peer_closed_ = true;
      break;
    }
  }
  tell(health());
}

}  // namespace sherd::runtime

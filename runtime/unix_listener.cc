#include "runtime/unix_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/flock.h"

namespace sherd::runtime {
namespace {

sockaddr_un Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

std::string LockPath(const std::string& path) { return path + ".lock"; }

absl::Status InUse(const std::string& path) {
  return absl::AlreadyExistsError(absl::StrCat("another process listens on ", path));
}

// A lock beside the socket, so that of two processes that find a dead socket only one replaces it.
absl::StatusOr<UniqueFd> LockSocket(const std::string& path) {
  const std::string lock_path = LockPath(path);
  for (;;) {
    UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
    if (!lock.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", lock_path));
    if (Flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return InUse(path);
      return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", lock_path));
    }
    // Its last holder may have removed it since it was opened here.
    struct stat mine, there;
    if (::fstat(lock.get(), &mine) == 0 && ::lstat(lock_path.c_str(), &there) == 0 &&
        mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
      return lock;
    }
  }
}

// OK when a socket may be made at `path`: nothing is there, or a socket that nobody answers, which is
// removed.
absl::Status ClearPath(const std::string& path) {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0) {
    return errno == ENOENT ? absl::OkStatus() : absl::ErrnoToStatus(errno, path);
  }
  if (!S_ISSOCK(st.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is not a socket: remove it or choose another path"));
  }
  absl::StatusOr<UniqueFd> answer = ConnectUnix(path);
  if (answer.ok()) return InUse(path);
  if (!absl::IsUnavailable(answer.status()) && !absl::IsNotFound(answer.status())) return answer.status();
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove the dead socket ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Bind(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "socket");
  // Before bind: the file takes its mode from the socket, so it is never open to others.
  if (::fchmod(fd.get(), 0600) != 0) return absl::ErrnoToStatus(errno, "fchmod of a socket");
  const sockaddr_un address = Address(path);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EADDRINUSE) return InUse(path);
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot create the socket ", path));
  }
  if (::listen(fd.get(), 128) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen on ", path));
  return fd;
}

}  // namespace

absl::Status ValidateUnixPath(const std::string& path) {
  if (path.empty() || path.size() > kMaxUnixPath || path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' has ", path.size(),
                                                   " characters; the path of a unix socket has 1 to ",
                                                   kMaxUnixPath, ": use a shorter directory or job name"));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  absl::Status valid = ValidateUnixPath(path);
  if (!valid.ok()) return valid;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "socket");
  const sockaddr_un address = Address(path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  if (errno == ENOENT) return absl::NotFoundError(absl::StrCat("there is no socket ", path));
  if (errno == ECONNREFUSED) return absl::UnavailableError(absl::StrCat("nobody listens on ", path));
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot connect to ", path));
}

absl::StatusOr<std::unique_ptr<UnixListener>> UnixListener::Start(Options options) {
  absl::Status status = ValidateUnixPath(options.path);
  if (!status.ok()) return status;
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.ok()) return absl::ErrnoToStatus(errno, "eventfd");
  absl::StatusOr<UniqueFd> lock = LockSocket(options.path);
  if (!lock.ok()) return lock.status();
  status = ClearPath(options.path);
  if (status.ok()) {
    absl::StatusOr<UniqueFd> socket = Bind(options.path);
    if (socket.ok()) {
      return std::unique_ptr<UnixListener>(
          new UnixListener(std::move(options), std::move(*lock), std::move(*socket), std::move(stop)));
    }
    status = socket.status();
  }
  ::unlink(LockPath(options.path).c_str());
  return status;
}

UnixListener::UnixListener(Options options, UniqueFd lock, UniqueFd socket, UniqueFd stop)
    : options_(std::move(options)),
      socket_(std::move(socket)),
      stop_(std::move(stop)),
      lock_(std::move(lock)),
      thread_([this] { Run(); }) {}

UnixListener::~UnixListener() { Stop(); }

void UnixListener::Stop() {
  MutexLock lock(mu_);
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof(one));
  thread_.join();
  // The lock goes last: until then nobody else makes a socket of this name.
  ::unlink(options_.path.c_str());
  ::shutdown(socket_.get(), SHUT_RDWR);  // those in the queue learn now
  ::unlink(LockPath(options_.path).c_str());
  lock_.Reset();
}

void UnixListener::Run() {
  for (;;) {
    pollfd fds[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    if (fds[0].revents != 0) Accept();
  }
}

void UnixListener::Accept() {
  UnixPeer peer;
  peer.fd.Reset(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!peer.fd.ok()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // The peer stays in the queue and poll would return at once: give the process time to close something.
      pollfd stop = {stop_.get(), POLLIN, 0};
      (void)::poll(&stop, 1, 20);
    }
    return;  // otherwise the peer went away again
  }
  ucred who = {};
  socklen_t size = sizeof(who);
  const bool known =
      ::getsockopt(peer.fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && size == sizeof(who);
  if (!known || (who.uid != ::geteuid() && who.uid != 0)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    if (options_.on_refused) options_.on_refused(who.pid, who.uid);
    return;
  }
  peer.pid = who.pid;
  peer.uid = who.uid;
  options_.on_connection(std::move(peer));
}

}  // namespace sherd::runtime

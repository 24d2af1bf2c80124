// Accepts connections on a unix socket from this user alone, and hands them on.
//
//   UnixListener::Options options;
//   options.path = dir.path() + "/server-0.sock";
//   options.on_connection = [&](UnixPeer peer) { grpc::AddInsecureChannelFromFd(server, peer.fd.Release());
//   }; absl::StatusOr<std::unique_ptr<UnixListener>> listener = UnixListener::Start(std::move(options));
//
// The kernel says who connects (SO_PEERCRED): peers that are neither this user nor root are closed unheard
// and counted. The socket's file has mode 0600 and is removed with the listener; one that a dead process left
// is replaced.
#ifndef SHERD_RUNTIME_UNIX_LISTENER_H_
#define SHERD_RUNTIME_UNIX_LISTENER_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

struct UnixPeer {
  // Connected, non-blocking, close-on-exec.
  UniqueFd fd;
  // Of the process that connected; it may have passed the connection on.
  pid_t pid = 0;
  uid_t uid = 0;
};

// The longest path a unix socket can have on Linux.
inline constexpr size_t kMaxUnixPath = 107;
// INVALID_ARGUMENT with path, length and limit when a socket cannot have the path.
absl::Status ValidateUnixPath(const std::string& path);

// Connects to a listener, for clients. NOT_FOUND when there is no such socket; UNAVAILABLE when nobody
// listens on it. The descriptor is blocking and closes on exec.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

// Thread-safe.
class UnixListener {
 public:
  struct Options {
    std::string path;
    // Called for every accepted peer, one at a time, on the listener's thread. Owns the connection.
    std::function<void(UnixPeer)> on_connection;
    // Called for every refused one, on the same thread; may be empty.
    std::function<void(pid_t, uid_t)> on_refused;
  };

  // Connections are accepted from now on.
  //   INVALID_ARGUMENT     the path is too long
  //   ALREADY_EXISTS       somebody listens there
  //   FAILED_PRECONDITION  something that is not a socket stands there
  //   NOT_FOUND            no such directory
  static absl::StatusOr<std::unique_ptr<UnixListener>> Start(Options options);

  // Stop().
  ~UnixListener();

  // Stops accepting and removes the socket; connections handed on live on. Returns when no callback runs any
  // more. Not to be called from a callback. A second call does nothing.
  void Stop();

  const std::string& path() const { return options_.path; }
  // Peers closed because they were another user's.
  int64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  UnixListener(Options options, UniqueFd lock, UniqueFd socket, UniqueFd stop);
  void Run();
  void Accept();

  const Options options_;
  const UniqueFd socket_;
  const UniqueFd stop_;
  std::atomic<int64_t> refused_{0};
  Mutex mu_;
  // Held while the socket stands.
  UniqueFd lock_ ABSL_GUARDED_BY(mu_);
  std::thread thread_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_UNIX_LISTENER_H_

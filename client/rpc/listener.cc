#include "client/rpc/listener.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "runtime/process_stat.h"
#include "runtime/unique_fd.h"

namespace sherd::rpc {
namespace {

// 0: not known.
pid_t ListenerAt(absl::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return 0;
  std::memcpy(address.sun_path, path.data(), path.size());
  const runtime::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok() || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return 0;
  ucred peer{};
  socklen_t size = sizeof(peer);
  return ::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.pid : 0;
}

}  // namespace

std::string StoppedListeners(const std::vector<std::string>& endpoints) {
  std::string text;
  for (const std::string& endpoint : endpoints) {
    absl::string_view path = endpoint;
    if (!absl::ConsumePrefix(&path, "unix:")) continue;
    const pid_t pid = ListenerAt(path);
    const absl::StatusOr<runtime::ProcessStat> stat = runtime::ReadProcessStat(pid);
    if (pid == 0 || !stat.ok() || !runtime::IsStopped(pid, stat->start_ticks)) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", "process ", pid, ", which listens at ", endpoint,
                    ", is stopped by a signal or a debugger (kill -CONT ", pid, ")");
  }
  return text;
}

}  // namespace sherd::rpc

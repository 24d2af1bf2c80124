#include "runtime/dir_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/dir_tree.h"

namespace sherd::runtime {

absl::StatusOr<std::unique_ptr<DirWatch>> DirWatch::Start(int dir_fd, const std::string& path,
                                                          Callback callback) {
  UniqueFd dir(::openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!dir.ok() || !stop.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch ", path));
  UniqueFd inotify(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify.ok()) {
    if (errno == EMFILE) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot watch ", path, ": raise fs.inotify.max_user_instances or the limit of open files"));
    }
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch ", path));
  }
  // Through the descriptor, so that it is the very directory that is open, wherever its path leads by now.
  const std::string self = absl::StrCat("/proc/self/fd/", dir.get());
  if (::inotify_add_watch(inotify.get(), self.c_str(),
                          IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ONLYDIR) < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch ", path));
  }
  absl::StatusOr<std::vector<std::string>> now = ListDir(dir.get());
  if (!now.ok()) return now.status();
  return std::unique_ptr<DirWatch>(new DirWatch(std::move(dir), std::move(inotify), std::move(stop),
                                                std::set<std::string>(now->begin(), now->end()),
                                                std::move(callback)));
}

DirWatch::DirWatch(UniqueFd dir, UniqueFd inotify, UniqueFd stop, std::set<std::string> known,
                   Callback callback)
    : dir_(std::move(dir)),
      inotify_(std::move(inotify)),
      stop_(std::move(stop)),
      known_(std::move(known)),
      callback_(std::move(callback)),
      thread_([this] { Run(); }) {}

DirWatch::~DirWatch() {
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

void DirWatch::Run() {
  for (;;) {
    pollfd fds[2] = {{inotify_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    if (fds[0].revents != 0 && !ReadEvents()) return;
  }
}

bool DirWatch::ReadEvents() {
  alignas(inotify_event) char buffer[4096];
  const ssize_t n = ::read(inotify_.get(), buffer, sizeof(buffer));
  for (ssize_t at = 0; at < n;) {
    const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
    if ((event->mask & IN_Q_OVERFLOW) != 0) {
      TellAll();
      continue;
    }
    if (event->len == 0) continue;
    const std::string file = event->name;
    if ((event->mask & (IN_DELETE | IN_MOVED_FROM)) != 0) {
      known_.erase(file);
    } else {
      known_.insert(file);
    }
    callback_(file);
    // A watch that ends while a burst is told need not tell the rest.
    pollfd stop = {stop_.get(), POLLIN, 0};
    if (::poll(&stop, 1, 0) > 0) return false;
  }
  return true;
}

void DirWatch::TellAll() {
  absl::StatusOr<std::vector<std::string>> now = ListDir(dir_.get());
  std::set<std::string> told = std::exchange(known_, {});
  if (now.ok()) {
    known_.insert(now->begin(), now->end());
    told.insert(now->begin(), now->end());
  }
  for (const std::string& file : told) callback_(file);
}

}  // namespace sherd::runtime

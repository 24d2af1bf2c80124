// Owner of one file descriptor.
//
//   UniqueFd fd(open(path, O_RDONLY | O_CLOEXEC));
//   if (!fd.ok()) return absl::ErrnoToStatus(errno, path);
//
// Movable; closes at destruction. Thread-compatible.
#ifndef SHERD_RUNTIME_UNIQUE_FD_H_
#define SHERD_RUNTIME_UNIQUE_FD_H_

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace sherd::runtime {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(); }

  bool ok() const { return fd_ >= 0; }
  int get() const { return fd_; }
  // Gives the descriptor to the caller.
  int Release() { return std::exchange(fd_, -1); }
  // Closes the descriptor held and takes `fd`. Keeps errno: an error path may still want to report it.
  void Reset(int fd = -1) {
    const int saved = errno;
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
    errno = saved;
  }

 private:
  int fd_ = -1;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_UNIQUE_FD_H_

#include "runtime/formats/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sherd::formats {
namespace {

using runtime::UniqueFd;

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

absl::string_view KindOf(mode_t mode) {
  return S_ISDIR(mode) ? "directory" : S_ISFIFO(mode) ? "pipe" : S_ISSOCK(mode) ? "socket" : "device";
}

absl::string_view Remedy(int error) {
  switch (error) {
    case ENOENT:
      return "no such file or directory; correct the path";
    case EACCES:
    case EPERM:
      return "permission denied; choose another place, or have its owner grant access";
    case EROFS:
      return "the file system is read-only; choose another place";
    case ENOSPC:
      return "no space left on the device; free some, or choose another place";
    case EDQUOT:
      return "disk quota exceeded; free some space, or choose another place";
    case EFBIG:
      return "larger than this file system or process may write; choose another place or a smaller split";
    case EMFILE:
    case ENFILE:
      return "too many open files; raise the limit (ulimit -n)";
    default:
      return "";
  }
}

}  // namespace

absl::Status FileError(int error, absl::string_view action, absl::string_view path) {
  const absl::string_view remedy = Remedy(error);
  const std::string what = absl::StrCat("cannot ", action, " ", path);
  if (remedy.empty()) return absl::ErrnoToStatus(error, what);
  const std::string message = absl::StrCat(what, ": ", remedy);
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    default:
      return absl::ResourceExhaustedError(message);
  }
}

absl::Status ReadExactly(int fd, absl::string_view path, uint64_t offset, absl::Span<char> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(errno, "read", path);
    if (n == 0) {
      return absl::DataLossError(absl::StrCat(path, " ends at byte ", offset + done, " where ",
                                              out.size() - done, " more were expected: it was cut short"));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenRegular(const std::string& path, uint64_t* bytes) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!fd.ok()) return FileError(errno, "open", path);
  struct stat file;
  if (fstat(fd.get(), &file) != 0) return FileError(errno, "inspect", path);
  if (!S_ISREG(file.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file but a ", KindOf(file.st_mode), ": give the path of a file"));
  }
  *bytes = static_cast<uint64_t>(file.st_size);
  return fd;
}

AtomicFile::AtomicFile(std::string path, std::string name, uint64_t bytes, OnAbandon on_abandon)
    : path_(std::move(path)),
      name_(std::move(name)),
      partial_(absl::StrCat(".", name_, ".partial")),
      bytes_(bytes),
      on_abandon_(on_abandon) {}

AtomicFile::~AtomicFile() {
  // Removed while the lock is held: a writer that waits for it then sees that the name is gone.
  if (ours_ && on_abandon_ == OnAbandon::kRemove) unlinkat(directory_fd_.get(), partial_.c_str(), 0);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::At(const std::string& path, uint64_t bytes,
                                                           OnAbandon on_abandon) {
  const size_t slash = path.rfind('/');
  const std::string name = slash == path.npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == ".." || path.find('\0') != path.npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" does not name a file to write"));
  }
  if (bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max()))
    return FileError(EFBIG, "write", path);
  const std::string directory = slash == path.npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  std::unique_ptr<AtomicFile> file(new AtomicFile(path, name, bytes, on_abandon));
  if (absl::Status s = file->OpenDirectory(directory); !s.ok()) return s;
  return file;
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path, uint64_t bytes,
                                                               Options options) {
  absl::StatusOr<std::unique_ptr<AtomicFile>> file = At(path, bytes, options.on_abandon);
  if (!file.ok()) return file;
  absl::Status status = (*file)->OpenLocked();
  if (status.ok()) status = (*file)->Reserve(options.resume);
  if (!status.ok()) return status;
  return file;
}

absl::Status AtomicFile::CheckTarget(const std::string& path) {
  const absl::StatusOr<std::unique_ptr<AtomicFile>> file = At(path, 0, OnAbandon::kKeep);
  if (!file.ok()) return file.status();
  if (faccessat((*file)->directory_fd_.get(), ".", W_OK | X_OK, AT_EACCESS) != 0)
    return FileError(errno, "write", path);
  return absl::OkStatus();
}

absl::Status AtomicFile::OpenDirectory(const std::string& directory) {
  directory_fd_.Reset(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_fd_.ok() && errno == ENOENT) {
    return absl::NotFoundError(
        absl::StrCat("cannot write ", path_, ": directory ", directory, " does not exist; create it first"));
  }
  if (!directory_fd_.ok()) return FileError(errno, "open directory", directory);
  struct stat target;
  if (fstatat(directory_fd_.get(), name_.c_str(), &target, 0) == 0 && S_ISDIR(target.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat("cannot write ", path_, ": it is a directory"));
  }
  // A rename would put a file where /dev/null or somebody's socket was.
  if (fstatat(directory_fd_.get(), name_.c_str(), &target, AT_SYMLINK_NOFOLLOW) == 0 &&
      !S_ISREG(target.st_mode) && !S_ISLNK(target.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot write ", path_, ": it is there and no regular file; choose another name"));
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::OpenLocked() {
  // Another writer may commit or abandon between our open and our lock; then the name is no longer what we
  // opened.
  for (int attempt = 0; attempt < 8; ++attempt) {
    constexpr int kFlags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    fd_.Reset(openat(directory_fd_.get(), partial_.c_str(), kFlags, 0666));
    if (!fd_.ok()) return FileError(errno, "create", path_);
    struct stat opened, named;
    if (fstat(fd_.get(), &opened) != 0) return FileError(errno, "inspect", path_);
    if (!S_ISREG(opened.st_mode)) {
      return absl::FailedPreconditionError(
          absl::StrCat("cannot write ", path_, ": ", partial_, " beside it is no regular file; remove it"));
    }
    if (flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return FileError(errno, "lock", path_);
      return absl::FailedPreconditionError(
          absl::StrCat("cannot write ", path_, ": another process is writing it"));
    }
    if (fstatat(directory_fd_.get(), partial_.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        SameFile(opened, named)) {
      ours_ = true;
      return absl::OkStatus();
    }
  }
  return absl::AbortedError(
      absl::StrCat("cannot write ", path_, ": other writers keep replacing it; try again"));
}

absl::Status AtomicFile::Reserve(bool resume) {
  struct stat partial;
  if (fstat(fd_.get(), &partial) != 0) return FileError(errno, "inspect", path_);
  if (resume && bytes_ > 0 && static_cast<uint64_t>(partial.st_size) == bytes_) {
    resumed_ = true;
    return absl::OkStatus();
  }
  if (ftruncate(fd_.get(), 0) != 0) return FileError(errno, "empty the partial file of", path_);
  if (bytes_ == 0) return absl::OkStatus();
  // Asked first, because a failing fallocate fills the disk for a moment, to the harm of everybody else on
  // it.
  struct statvfs space;
  if (fstatvfs(fd_.get(), &space) == 0 && space.f_frsize > 0 && space.f_blocks > 0 &&
      bytes_ / space.f_frsize > space.f_bavail) {
    return FileError(ENOSPC, absl::StrCat("reserve ", bytes_, " bytes for"), path_);
  }
  if (fallocate(fd_.get(), 0, 0, static_cast<off_t>(bytes_)) == 0) return absl::OkStatus();
  if (errno != EOPNOTSUPP && errno != ENOSYS) {
    return FileError(errno, absl::StrCat("reserve ", bytes_, " bytes for"), path_);
  }
  if (ftruncate(fd_.get(), static_cast<off_t>(bytes_)) != 0) return FileError(errno, "extend", path_);
  return absl::OkStatus();
}

absl::Status AtomicFile::WriteAt(uint64_t offset, absl::string_view bytes) {
  if (offset > bytes_ || bytes.size() > bytes_ - offset) {
    return absl::OutOfRangeError(absl::StrCat("write of ", bytes.size(), " bytes at ", offset,
                                              " passes the end of ", path_, " of ", bytes_, " bytes"));
  }
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(errno, "write", path_);
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::ReadAt(uint64_t offset, absl::Span<char> out) const {
  return ReadExactly(fd_.get(), path_, offset, out);
}

absl::Status AtomicFile::Commit() {
  if (!ours_) return absl::FailedPreconditionError(absl::StrCat(path_, " is already committed"));
  if (fsync(fd_.get()) != 0) return FileError(errno, "sync", path_);
  if (renameat(directory_fd_.get(), partial_.c_str(), directory_fd_.get(), name_.c_str()) != 0) {
    return FileError(errno, "rename the partial file to", path_);
  }
  ours_ = false;
  if (fsync(directory_fd_.get()) != 0) return FileError(errno, "sync the directory of", path_);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadWhole(const std::string& path, uint64_t max_bytes) {
  uint64_t bytes = 0;
  const absl::StatusOr<UniqueFd> fd = OpenRegular(path, &bytes);
  if (!fd.ok()) return fd.status();
  if (bytes > max_bytes) {
    return absl::OutOfRangeError(absl::StrCat(path, ": ", bytes, " bytes, more than ", max_bytes));
  }
  std::string content(bytes, '\0');
  absl::Status status = ReadExactly(fd->get(), path, 0, absl::MakeSpan(&content[0], content.size()));
  if (!status.ok()) return status;
  return content;
}

absl::Status WriteWhole(const std::string& path, absl::string_view bytes) {
  absl::StatusOr<std::unique_ptr<AtomicFile>> file = AtomicFile::Create(path, bytes.size(), {});
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->WriteAt(0, bytes); !status.ok()) return status;
  return (*file)->Commit();
}

}  // namespace sherd::formats

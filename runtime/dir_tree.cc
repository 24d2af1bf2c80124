#include "runtime/dir_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

// Deep enough for anything Sherd makes; a bound on descriptors held by the recursion.
constexpr int kMaxDepth = 32;

absl::Status TooDeep(const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(path, " is nested deeper than ", kMaxDepth, " directories"));
}

UniqueFd OpenSubdir(int dir_fd, const std::string& name) {
  return UniqueFd(::openat(dir_fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

absl::StatusOr<int64_t> BytesUsedBelow(int dir_fd, const std::string& path, int depth) {
  if (depth > kMaxDepth) return TooDeep(path);
  absl::StatusOr<std::vector<std::string>> names = ListDir(dir_fd);
  if (!names.ok()) return names.status();
  int64_t total = 0;
  for (const std::string& name : *names) {
    struct stat st;
    if (::fstatat(dir_fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
    total += static_cast<int64_t>(st.st_blocks) * 512;
    if (!S_ISDIR(st.st_mode)) continue;
    UniqueFd sub = OpenSubdir(dir_fd, name);
    if (!sub.ok()) continue;
    absl::StatusOr<int64_t> below = BytesUsedBelow(sub.get(), absl::StrCat(path, "/", name), depth + 1);
    if (!below.ok()) return below;
    total += *below;
  }
  return total;
}

absl::Status RemoveBelow(int dir_fd, const std::string& path, int depth) {
  if (depth > kMaxDepth) return TooDeep(path);
  absl::StatusOr<std::vector<std::string>> names = ListDir(dir_fd);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    const std::string full = absl::StrCat(path, "/", name);
    if (::unlinkat(dir_fd, name.c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM)
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", full));
    UniqueFd sub = OpenSubdir(dir_fd, name);
    if (!sub.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", full));
    absl::Status below = RemoveBelow(sub.get(), full, depth + 1);
    if (!below.ok()) return below;
    if (::unlinkat(dir_fd, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", full));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListDir(int dir_fd) {
  // A descriptor of its own: the position of a listing belongs to the open file.
  UniqueFd fd(::openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "cannot open a directory to list it");
  DIR* dir = ::fdopendir(fd.get());
  if (dir == nullptr) return absl::ErrnoToStatus(errno, "cannot list a directory");
  fd.Release();
  absl::Cleanup close = [dir] { ::closedir(dir); };
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir);
    if (entry == nullptr) break;
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return absl::ErrnoToStatus(errno, "cannot list a directory");
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<int64_t> BytesUsed(int dir_fd, const std::string& path) {
  return BytesUsedBelow(dir_fd, path, 0);
}

absl::Status RemoveContents(int dir_fd, const std::string& path) { return RemoveBelow(dir_fd, path, 0); }

}  // namespace sherd::runtime

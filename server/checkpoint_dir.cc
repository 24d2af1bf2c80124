#include "server/checkpoint_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/atomic_file.h"
#include "server/checkpoint_manifest.h"

namespace sherd::server {
namespace {

using formats::FileError;
using runtime::UniqueFd;

constexpr char kStagingPrefix[] = ".saving-";
constexpr char kStagingSuffix[] = ".partial";

bool IsStaging(absl::string_view name) {
  return absl::StartsWith(name, kStagingPrefix) && absl::EndsWith(name, kStagingSuffix);
}

// What saves write: parts, states, manifests, and their partial files.
bool IsOurs(absl::string_view name) {
  return name == kManifestName || absl::EndsWith(name, ".safetensors") ||
         (absl::StartsWith(name, ".") && absl::EndsWith(name, ".partial"));
}

std::vector<std::string> NamesIn(int fd) {
  std::vector<std::string> names;
  const int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(fdopendir(copy), closedir);
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir.get())) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointDir>> CheckpointDir::Open(const std::string& path) {
  if (path.empty() || path[0] != '/' || path.find('\0') != path.npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "directory \"", path, "\" is not an absolute path: servers have other working directories"));
  }
  const bool made = mkdir(path.c_str(), 0777) == 0;
  if (!made && errno != EEXIST) return FileError(errno, "make the directory", path);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok() && errno == ENOTDIR) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot save into ", path, ": it is no directory; choose another place"));
  }
  if (!fd.ok()) return FileError(errno, "save into", path);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return FileError(errno, "lock", path);
    return absl::FailedPreconditionError(
        absl::StrCat("cannot save into ", path, ": another save is at work there; wait for it"));
  }
  std::unique_ptr<CheckpointDir> dir(new CheckpointDir(path, std::move(fd)));
  dir->RemoveLeftovers();
  if (absl::Status s = dir->MakeStaging(); !s.ok()) return s;
  return dir;
}

CheckpointDir::~CheckpointDir() {
  if (!staging_name_.empty()) RemoveTree(staging_name_);
}

absl::Status CheckpointDir::MakeStaging() {
  std::random_device random;
  for (int n = 0;; ++n) {
    // Never a name that was used before: who wrote for a save that was given up, and hears of it late,
    // removes what he wrote by its path.
    const std::string name = absl::StrCat(
        kStagingPrefix, absl::Hex(uint64_t{random()} << 32 | random(), absl::kZeroPad16), kStagingSuffix);
    if (mkdirat(fd_.get(), name.c_str(), 0777) != 0) {
      if (errno == EEXIST && n < 1000) continue;
      return FileError(errno, "save into", path_);
    }
    staging_name_ = name;
    staging_fd_.Reset(openat(fd_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    return staging_fd_.ok() ? absl::OkStatus() : FileError(errno, "open", staging());
  }
}

void CheckpointDir::RemoveLeftovers() {
  // Nobody is at work here: the directory is locked by us.
  for (const std::string& name : NamesIn(fd_.get())) {
    if (IsStaging(name)) RemoveTree(name);
  }
}

bool CheckpointDir::RemoveTree(const std::string& name) {
  const UniqueFd tree(openat(fd_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!tree.ok()) return false;
  const std::vector<std::string> names = NamesIn(tree.get());
  if (!std::all_of(names.begin(), names.end(), [](const std::string& n) { return IsOurs(n); })) return false;
  for (const std::string& n : names) unlinkat(tree.get(), n.c_str(), 0);
  return unlinkat(fd_.get(), name.c_str(), AT_REMOVEDIR) == 0;
}

absl::Status CheckpointDir::Settle(const std::map<std::string, int64_t>& files) const {
  for (const std::string& name : NamesIn(staging_fd_.get())) {
    if (files.count(name) == 0) unlinkat(staging_fd_.get(), name.c_str(), 0);
  }
  for (const auto& [name, bytes] : files) {
    struct stat there;
    const bool found = fstatat(staging_fd_.get(), name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
    if (found && S_ISREG(there.st_mode) && there.st_size == bytes) continue;
    return absl::DataLossError(absl::StrCat(staging(), "/", name, ", written a moment ago, ",
                                            found ? "has another size" : "is not there"));
  }
  return absl::OkStatus();
}

absl::Status CheckpointDir::Commit(const std::string& tag) {
  if (absl::Status s = CheckTag(tag); !s.ok()) return s;
  struct stat there;
  const bool exists = fstatat(fd_.get(), tag.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
  if (exists && !S_ISDIR(there.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot save as ", path_, "/", tag, ": that is no directory; choose another --tag"));
  }
  if (fsync(staging_fd_.get()) != 0) return FileError(errno, "sync", staging());
  // A checkpoint of this tag changes places with ours, so that at every instant one of them has the name.
  if (renameat2(fd_.get(), staging_name_.c_str(), fd_.get(), tag.c_str(), exists ? RENAME_EXCHANGE : 0) !=
      0) {
    // Not every shared file system can (NFS cannot).
    if (exists && (errno == EINVAL || errno == ENOSYS)) {
      return absl::FailedPreconditionError(
          absl::StrCat("cannot save as ", path_, "/", tag,
                       ": it is there, and this file system cannot exchange two directories; choose another "
                       "--tag, or remove that one"));
    }
    return FileError(errno, "rename the finished checkpoint to", absl::StrCat(path_, "/", tag));
  }
  if (exists) {
    RemoveTree(staging_name_);
  }
  staging_name_.clear();
  committed_ = tag;
  if (fsync(fd_.get()) != 0) return FileError(errno, "sync", path_);
  absl::Status latest = formats::WriteWhole(absl::StrCat(path_, "/", kLatestName), tag + "\n");
  if (latest.ok()) return latest;
  return absl::Status(latest.code(), absl::StrCat("checkpoint ", path_, "/", tag, " is whole, but `",
                                                  kLatestName, "` does not name it: ", latest.message()));
}

std::vector<std::string> CheckpointDir::Keep(int keep) {
  std::vector<std::string> removed;
  if (keep <= 0) return removed;
  const absl::StatusOr<std::string> latest = formats::ReadWhole(absl::StrCat(path_, "/", kLatestName), 4096);
  int kept = 0;
  for (const FoundCheckpoint& c : FindCheckpoints(path_)) {
    const bool spared = c.tag == committed_ || (latest.ok() && *latest == c.tag + "\n");
    if (++kept <= keep || spared) continue;
    const UniqueFd tree(openat(fd_.get(), c.tag.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    const std::vector<std::string> names = tree.ok() ? NamesIn(tree.get()) : std::vector<std::string>();
    const bool only_ours = std::all_of(names.begin(), names.end(), [&](const std::string& n) {
      return n == kManifestName || std::count(c.files.begin(), c.files.end(), n) != 0;
    });
    if (!tree.ok() || !only_ours) continue;
    // Out of sight first: a death in the middle leaves a leftover and not half a checkpoint.
    const std::string doomed = absl::StrCat(kStagingPrefix, getpid(), "-", c.tag, kStagingSuffix);
    if (renameat(fd_.get(), c.tag.c_str(), fd_.get(), doomed.c_str()) != 0) continue;
    RemoveTree(doomed);
    removed.push_back(c.tag);
  }
  return removed;
}

}  // namespace sherd::server

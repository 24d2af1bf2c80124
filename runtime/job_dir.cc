#include "runtime/job_dir.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "runtime/dir_tree.h"
#include "runtime/flock.h"

namespace sherd::runtime {
namespace {

constexpr size_t kUuidLength = 36;
constexpr size_t kMaxJobName = 40;

bool IsUuid(absl::string_view text) {
  if (text.size() != kUuidLength) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : !absl::ascii_isxdigit(text[i]) || absl::ascii_isupper(text[i])) return false;
  }
  return true;
}

absl::StatusOr<std::string> NewUuid() {
  uint8_t b[16];
  if (::getrandom(b, sizeof(b), 0) != sizeof(b)) return absl::ErrnoToStatus(errno, "getrandom");
  b[6] = static_cast<uint8_t>((b[6] & 0x0f) | 0x40);  // version 4, random
  b[8] = static_cast<uint8_t>((b[8] & 0x3f) | 0x80);
  std::string out;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    absl::StrAppendFormat(&out, "%02x", b[i]);
  }
  return out;
}

struct Name {
  std::string job;
  std::string uuid;
};

// <job>-<uuid>; nullopt for any other name.
std::optional<Name> ParseName(absl::string_view entry) {
  if (entry.size() < kUuidLength + 2) return std::nullopt;
  const size_t dash = entry.size() - kUuidLength - 1;
  Name name{std::string(entry.substr(0, dash)), std::string(entry.substr(dash + 1))};
  if (entry[dash] != '-' || !IsUuid(name.uuid) || !ValidateJobName(name.job).ok()) return std::nullopt;
  return name;
}

// Opens the directory `path` (under `at`), following no link at its end, and requires it private to this
// user.
absl::StatusOr<UniqueFd> OpenPrivate(int at, const std::string& name, const std::string& path) {
  UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st;
  if (!fd.ok()) {
    const int error = errno;
    if (error == ENOENT) return absl::NotFoundError(absl::StrCat(path, " does not exist"));
    // Say whose it is even when it may not be opened.
    if (::fstatat(at, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) return absl::ErrnoToStatus(error, path);
    if (!S_ISDIR(st.st_mode)) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is ", S_ISLNK(st.st_mode) ? "a link" : "not a directory", " (owner uid ",
                       st.st_uid, "): remove it, or choose another shared-memory directory"));
    }
  } else if (::fstat(fd.get(), &st) != 0) {
    return absl::ErrnoToStatus(errno, path);
  }
  if (st.st_uid != ::geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is owned by uid ", st.st_uid, ", not by uid ", ::geteuid(),
                     ": have it removed, or choose another shared-memory directory"));
  }
  if ((st.st_mode & 07777) != 0700) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s (owner uid %d) has mode %04o, not 0700: run chmod 700 %s if you trust what is in it, or "
        "remove it",
        path, st.st_uid, st.st_mode & 07777, path));
  }
  if (!fd.ok()) return absl::UnavailableError(absl::StrCat(path, " cannot be opened"));
  return fd;
}

bool SameFile(int fd, int at, const std::string& name) {
  struct stat a, b;
  return ::fstat(fd, &a) == 0 && ::fstatat(at, name.c_str(), &b, AT_SYMLINK_NOFOLLOW) == 0 &&
         a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

std::string BasePath(const std::string& root) { return absl::StrCat(root, "/sherd-", ::geteuid()); }

// The directory sherd-<uid> under an exclusive lock: no job is made, probed or removed by anyone else
// meanwhile. Whoever takes it first looks whether it was removed while waiting, and starts again.
class Base {
 public:
  static absl::StatusOr<Base> Lock(const std::string& path, bool create) {
    for (;;) {
      bool created = false;
      if (create) {
        created = ::mkdir(path.c_str(), 0700) == 0;
        if (!created && errno == ENOENT) {
          return absl::NotFoundError(
              absl::StrCat("there is no directory to put ", path,
                           " in: mount a tmpfs there, or choose another shared-memory directory"));
        }
        if (!created && errno != EEXIST)
          return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
        if (created) ::chmod(path.c_str(), 0700);  // whatever the umask took
      }
      absl::StatusOr<UniqueFd> fd = OpenPrivate(AT_FDCWD, path, path);
      if (create && absl::IsNotFound(fd.status())) continue;  // removed since
      if (!fd.ok()) return fd.status();
      if (Flock(fd->get(), LOCK_EX) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", path));
      if (SameFile(fd->get(), AT_FDCWD, path)) return Base(path, std::move(*fd));
    }
  }

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  std::string PathOf(const std::string& entry) const { return absl::StrCat(path_, "/", entry); }

  // Entries that look like jobs, sorted.
  absl::StatusOr<std::vector<std::pair<std::string, Name>>> Jobs() const {
    absl::StatusOr<std::vector<std::string>> entries = ListDir(fd());
    if (!entries.ok()) return entries.status();
    std::vector<std::pair<std::string, Name>> jobs;
    for (std::string& entry : *entries) {
      if (std::optional<Name> name = ParseName(entry)) jobs.emplace_back(std::move(entry), *std::move(name));
    }
    return jobs;
  }

  // The directory locked exclusively, which only a dead job allows. FAILED_PRECONDITION when it is live.
  // Probes cannot disturb each other: all of them hold this Base.
  absl::StatusOr<UniqueFd> Claim(const std::string& entry) const {
    absl::StatusOr<UniqueFd> dir = OpenPrivate(fd(), entry, PathOf(entry));
    if (!dir.ok()) return dir.status();
    if (Flock(dir->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", PathOf(entry)));
      return absl::FailedPreconditionError(
          absl::StrCat("the job in ", PathOf(entry), " is running: stop its processes first"));
    }
    return dir;
  }

  bool IsLive(const std::string& entry) const {
    absl::StatusOr<UniqueFd> dir = OpenPrivate(fd(), entry, PathOf(entry));
    return dir.ok() && Flock(dir->get(), LOCK_EX | LOCK_NB) != 0;
  }

  // Removes a claimed directory; `dir` is its descriptor.
  absl::Status Remove(const std::string& entry, int dir) const {
    absl::Status status = RemoveContents(dir, PathOf(entry));
    if (!status.ok()) return status;
    if (::unlinkat(fd(), entry.c_str(), AT_REMOVEDIR) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", PathOf(entry)));
    }
    return absl::OkStatus();
  }

  // Others that wait for the lock notice and start again.
  void RemoveIfEmpty() const { ::rmdir(path_.c_str()); }

 private:
  Base(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
};

struct Split {
  std::string base;
  std::string entry;
  Name name;
};

absl::StatusOr<Split> SplitPath(absl::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash != absl::string_view::npos && slash > 0) {
    if (std::optional<Name> name = ParseName(path.substr(slash + 1))) {
      return Split{std::string(path.substr(0, slash)), std::string(path.substr(slash + 1)), *std::move(name)};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", path, "' is not the path of a job: .../sherd-<uid>/<job>-<uuid>"));
}

}  // namespace

absl::StatusOr<std::string> ShmRoot(const char* value) {
  if (value == nullptr || *value == '\0') return std::string(kDefaultShmRoot);
  if (*value == '/') return std::string(value);
  return absl::InvalidArgumentError(absl::StrCat(
      kShmRootVariable, "=", value, " is not an absolute path: name a directory in shared memory"));
}

absl::Status ValidateJobName(absl::string_view job) {
  const bool characters = std::all_of(job.begin(), job.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
  if (job.empty() || job.size() > kMaxJobName || !characters) {
    return absl::InvalidArgumentError(
        absl::StrCat("job name '", job, "': use 1 to ", kMaxJobName, " letters, digits, '.', '_' or '-'"));
  }
  return absl::OkStatus();
}

JobDir::JobDir(std::string path, std::string job, std::string uuid, Hold hold, UniqueFd fd)
    : path_(std::move(path)), job_(std::move(job)), uuid_(std::move(uuid)), hold_(hold), fd_(std::move(fd)) {
  const std::string hex = absl::StrReplaceAll(uuid_, {{"-", ""}});
  // The second half, where all but two bits are random; IsUuid() held, so this parses.
  (void)absl::SimpleHexAtoi(hex.substr(16), &id_);
}

absl::StatusOr<JobDir> JobDir::Create(const std::string& root, absl::string_view job) {
  absl::Status valid = ValidateJobName(job);
  if (!valid.ok()) return valid;
  absl::StatusOr<std::string> uuid = NewUuid();
  if (!uuid.ok()) return uuid.status();
  absl::StatusOr<Base> base = Base::Lock(BasePath(root), /*create=*/true);
  if (!base.ok()) return base.status();
  auto jobs = base->Jobs();
  if (!jobs.ok()) return jobs.status();
  for (const auto& [entry, name] : *jobs) {
    if (name.job == job && base->IsLive(entry)) {
      return absl::AlreadyExistsError(
          absl::StrCat("job name ", job, " is in use (directory ", base->PathOf(entry), ")"));
    }
  }
  const std::string entry = absl::StrCat(job, "-", *uuid);
  const std::string path = base->PathOf(entry);
  // The second call undoes what the umask took.
  if (::mkdirat(base->fd(), entry.c_str(), 0700) != 0 ||
      ::fchmodat(base->fd(), entry.c_str(), 0700, 0) != 0) {
    const absl::Status failed = absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
    base->RemoveIfEmpty();
    return failed;
  }
  absl::StatusOr<UniqueFd> dir = OpenPrivate(base->fd(), entry, path);
  if (!dir.ok()) return dir.status();
  if (Flock(dir->get(), LOCK_SH) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", path));
  return JobDir(path, std::string(job), *uuid, Hold::kMember, std::move(*dir));
}

absl::StatusOr<JobDir> JobDir::Open(const std::string& path, Hold hold) {
  absl::StatusOr<Split> split = SplitPath(path);
  if (!split.ok()) return split.status();
  absl::StatusOr<UniqueFd> base = OpenPrivate(AT_FDCWD, split->base, split->base);
  if (!base.ok()) return base.status();
  absl::StatusOr<UniqueFd> dir = OpenPrivate(base->get(), split->entry, path);
  if (!dir.ok()) return dir.status();
  if (hold == Hold::kMember) {
    // Waits out a probe or a removal, both short; after a removal the name is gone.
    if (Flock(dir->get(), LOCK_SH) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", path));
    if (!SameFile(dir->get(), base->get(), split->entry)) {
      return absl::NotFoundError(absl::StrCat(path, " was removed"));
    }
  }
  return JobDir(absl::StrCat(split->base, "/", split->entry), split->name.job, split->name.uuid, hold,
                std::move(*dir));
}

absl::StatusOr<std::vector<JobDir::Info>> JobDir::List(const std::string& root) {
  std::vector<Info> out;
  absl::StatusOr<Base> base = Base::Lock(BasePath(root), /*create=*/false);
  if (absl::IsNotFound(base.status())) return out;
  if (!base.ok()) return base.status();
  auto jobs = base->Jobs();
  if (!jobs.ok()) return jobs.status();
  for (const auto& [entry, name] : *jobs) {
    absl::StatusOr<UniqueFd> dir = OpenPrivate(base->fd(), entry, base->PathOf(entry));
    if (!dir.ok()) continue;  // not a job: a file or link of that name
    absl::StatusOr<int64_t> bytes = BytesUsed(dir->get(), base->PathOf(entry));
    if (!bytes.ok()) return bytes.status();
    out.push_back({name.job, base->PathOf(entry), base->IsLive(entry), *bytes});
  }
  return out;
}

absl::Status JobDir::Remove(const std::string& path) {
  absl::StatusOr<Split> split = SplitPath(path);
  if (!split.ok()) return split.status();
  absl::StatusOr<Base> base = Base::Lock(split->base, /*create=*/false);
  if (!base.ok()) return base.status();
  absl::StatusOr<UniqueFd> dir = base->Claim(split->entry);
  if (!dir.ok()) return dir.status();
  absl::Status removed = base->Remove(split->entry, dir->get());
  if (removed.ok()) base->RemoveIfEmpty();
  return removed;
}

absl::StatusOr<bool> JobDir::RemoveOwn() {
  if (hold_ != Hold::kMember)
    return absl::FailedPreconditionError(absl::StrCat(path_, " was opened without holding it"));
  absl::StatusOr<Split> split = SplitPath(path_);
  if (!split.ok()) return split.status();
  absl::StatusOr<Base> base = Base::Lock(split->base, /*create=*/false);
  if (!base.ok()) return base.status();
  // Changing a flock drops it first. Under the base lock nobody can use the gap: probes and removals need
  // that lock too.
  if (Flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (Flock(fd_.get(), LOCK_SH) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("flock of ", path_));
    return false;
  }
  absl::Status removed = base->Remove(split->entry, fd_.get());
  if (!removed.ok()) return removed;
  base->RemoveIfEmpty();
  return true;
}

absl::StatusOr<std::vector<JobDir::Removed>> JobDir::Gc(const std::string& root) {
  std::vector<Removed> out;
  absl::StatusOr<Base> base = Base::Lock(BasePath(root), /*create=*/false);
  if (absl::IsNotFound(base.status())) return out;
  if (!base.ok()) return base.status();
  auto jobs = base->Jobs();
  if (!jobs.ok()) return jobs.status();
  for (const auto& [entry, name] : *jobs) {
    absl::StatusOr<UniqueFd> dir = base->Claim(entry);
    if (!dir.ok()) continue;  // live, or not a directory of ours
    absl::StatusOr<int64_t> bytes = BytesUsed(dir->get(), base->PathOf(entry));
    if (!bytes.ok()) return bytes.status();
    absl::Status removed = base->Remove(entry, dir->get());
    if (!removed.ok()) return removed;
    out.push_back({base->PathOf(entry), *bytes});
  }
  base->RemoveIfEmpty();
  return out;
}

}  // namespace sherd::runtime

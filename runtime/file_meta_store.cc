#include "runtime/file_meta_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "runtime/dir_tree.h"
#include "runtime/dir_watch.h"
#include "runtime/flock.h"
#include "runtime/mutex.h"
#include "runtime/temp_name.h"
#include "runtime/value_file.h"

namespace sherd::runtime {
namespace {

// '+' is in no key, so the two directions are inverse, and all keys stand in one directory: one watch, one
// sync.
std::string FileOf(absl::string_view key) { return absl::StrReplaceAll(key, {{"/", "+"}}); }
std::string KeyOf(absl::string_view file) { return absl::StrReplaceAll(file, {{"+", "/"}}); }
bool IsKeyFile(absl::string_view file) { return ValidateMetaKey(KeyOf(file)).ok(); }

std::string LockFile(absl::string_view election) { return absl::StrCat(".lock.", election); }
std::string LeaderFile(absl::string_view election) { return absl::StrCat(".leader.", election); }

absl::StatusOr<UniqueFd> OpenLock(int dir_fd, absl::string_view election, const std::string& path) {
  UniqueFd fd(::openat(dir_fd, LockFile(election).c_str(),
                       O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!fd.ok())
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path, "/", LockFile(election)));
  return fd;
}

class FileWatch final : public MetaStore::WatchHandle {
 public:
  explicit FileWatch(std::unique_ptr<DirWatch> watch) : watch_(std::move(watch)) {}

 private:
  const std::unique_ptr<DirWatch> watch_;
};

// A candidacy, shared by the handle and the thread that waits for the lock. Nothing but the lock ends a
// blocking flock (short of signals, which a library must not claim), so a handle that goes first leaves the
// thread behind, detached: it drops the lock when it gets it.
class Candidacy {
 public:
  Candidacy(std::shared_ptr<const UniqueFd> dir, std::string path, std::string election, std::string identity,
            std::function<void()> gained, UniqueFd lock)
      : dir_(std::move(dir)),
        path_(std::move(path)),
        election_(std::move(election)),
        identity_(std::move(identity)),
        gained_(std::move(gained)),
        lock_(std::move(lock)) {}

  // The thread's work.
  void Wait() {
    const bool locked = Flock(lock_.get(), LOCK_EX) == 0;
    {
      MutexLock lock(mu_);
      if (withdrawn_ || !locked) {
        lock_.Reset();
        return;
      }
      held_ = calling_ = true;
    }
    // Who leads is for people to read; leading does not depend on it.
    WriteValueFile(dir_->get(), LeaderFile(election_), identity_, IfExists::kReplace, path_).IgnoreError();
    gained_();
    MutexLock lock(mu_);
    calling_ = false;
    idle_.SignalAll();
  }

  void Withdraw() {
    MutexLock lock(mu_);
    withdrawn_ = true;
    while (calling_) idle_.Wait(mu_);
    gained_ = nullptr;  // what it owns must not wait for the lock
    if (!held_) return;
    ::unlinkat(dir_->get(), LeaderFile(election_).c_str(), 0);
    lock_.Reset();
  }

  bool held() const {
    MutexLock lock(mu_);
    return held_;
  }

 private:
  const std::shared_ptr<const UniqueFd> dir_;
  const std::string path_;
  const std::string election_;
  const std::string identity_;
  // As lock_: the thread calls it after setting calling_, and not at all once withdrawn_.
  std::function<void()> gained_;
  // The waiting thread's until held_ or withdrawn_; the handle's afterwards.
  UniqueFd lock_;
  mutable Mutex mu_;
  CondVar idle_;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool calling_ ABSL_GUARDED_BY(mu_) = false;
  bool withdrawn_ ABSL_GUARDED_BY(mu_) = false;
};

class FileLeadership final : public MetaStore::Leadership {
 public:
  FileLeadership(std::shared_ptr<Candidacy> candidacy, std::unique_ptr<MetaStore> store)
      : candidacy_(std::move(candidacy)), store_(std::move(store)) {}
  ~FileLeadership() override { candidacy_->Withdraw(); }
  bool held() const override { return candidacy_->held(); }
  MetaStore& store() override { return *store_; }

 private:
  const std::shared_ptr<Candidacy> candidacy_;
  const std::unique_ptr<MetaStore> store_;
};

}  // namespace

FileMetaStore::FileMetaStore(std::string path, std::shared_ptr<const UniqueFd> dir,
                             std::function<bool()> held)
    : path_(std::move(path)), dir_(std::move(dir)), held_(std::move(held)) {}

absl::StatusOr<std::unique_ptr<FileMetaStore>> FileMetaStore::Open(const std::string& dir) {
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", dir));
  }
  UniqueFd fd(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat st;
  if (!fd.ok() || ::fstat(fd.get(), &st) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", dir));
  if (st.st_uid != ::geteuid() || (st.st_mode & 0022) != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s (owner uid %d, mode %04o) must belong to uid %d and be writable by nobody else: choose "
        "another directory",
        dir, st.st_uid, st.st_mode & 07777, ::geteuid()));
  }
  SweepStaleTemps(fd.get(), "");
  return std::unique_ptr<FileMetaStore>(
      new FileMetaStore(dir, std::make_shared<const UniqueFd>(std::move(fd)), nullptr));
}

absl::Status FileMetaStore::Check(absl::string_view key, absl::string_view value) const {
  absl::Status valid = ValidateMetaKey(key);
  valid.Update(ValidateMetaValue(key, value));
  // The lock does not go between this and the change: only this object's end releases it.
  if (valid.ok() && held_ != nullptr && !held_()) return NotLeading(key);
  return valid;
}

absl::StatusOr<std::string> FileMetaStore::Get(absl::string_view key) {
  absl::Status valid = ValidateMetaKey(key);
  if (!valid.ok()) return valid;
  const std::string file = FileOf(key);
  return ReadValueFile(dir_->get(), file, kMaxValueBytes, absl::StrCat(path_, "/", file));
}

absl::Status FileMetaStore::CreateIfAbsent(absl::string_view key, absl::string_view value) {
  if (absl::Status may = Check(key, value); !may.ok()) return may;
  const std::string file = FileOf(key);
  return WriteValueFile(dir_->get(), file, value, IfExists::kFail, absl::StrCat(path_, "/", file));
}

absl::Status FileMetaStore::Put(absl::string_view key, absl::string_view value) {
  if (absl::Status may = Check(key, value); !may.ok()) return may;
  const std::string file = FileOf(key);
  return WriteValueFile(dir_->get(), file, value, IfExists::kReplace, absl::StrCat(path_, "/", file));
}

absl::Status FileMetaStore::Delete(absl::string_view key) {
  if (absl::Status may = Check(key, ""); !may.ok()) return may;
  const std::string file = FileOf(key);
  if (::unlinkat(dir_->get(), file.c_str(), 0) != 0) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat(path_, "/", file, " does not exist"));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", path_, "/", file));
  }
  if (::fsync(dir_->get()) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", path_));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> FileMetaStore::List(absl::string_view prefix) {
  absl::StatusOr<std::vector<std::string>> files = ListDir(dir_->get());
  if (!files.ok()) return files.status();
  std::vector<std::string> keys;
  for (const std::string& file : *files) {
    if (IsKeyFile(file) && absl::StartsWith(KeyOf(file), prefix)) keys.push_back(KeyOf(file));
  }
  std::sort(keys.begin(), keys.end());  // '+' sorts unlike '/'
  return keys;
}

absl::StatusOr<std::unique_ptr<MetaStore::WatchHandle>> FileMetaStore::Watch(absl::string_view prefix,
                                                                             WatchCallback callback) {
  auto tell = [prefix = std::string(prefix), callback = std::move(callback)](const std::string& file) {
    if (!IsKeyFile(file)) return;
    const std::string key = KeyOf(file);
    if (absl::StartsWith(key, prefix)) callback(key);
  };
  absl::StatusOr<std::unique_ptr<DirWatch>> watch = DirWatch::Start(dir_->get(), path_, std::move(tell));
  if (!watch.ok()) return watch.status();
  return std::make_unique<FileWatch>(*std::move(watch));
}

absl::StatusOr<std::unique_ptr<MetaStore::Leadership>> FileMetaStore::Elect(absl::string_view name,
                                                                            absl::string_view identity,
                                                                            std::function<void()> gained,
                                                                            std::function<void()> /*lost*/) {
  if (absl::Status valid = ValidateCandidate(name, identity); !valid.ok()) return valid;
  absl::StatusOr<UniqueFd> lock = OpenLock(dir_->get(), name, path_);
  if (!lock.ok()) return lock.status();
  auto candidacy = std::make_shared<Candidacy>(dir_, path_, std::string(name), std::string(identity),
                                               std::move(gained), std::move(*lock));
  std::thread([candidacy] { candidacy->Wait(); }).detach();
  std::unique_ptr<MetaStore> mine(
      new FileMetaStore(path_, dir_, [c = candidacy.get()] { return c->held(); }));
  return std::make_unique<FileLeadership>(std::move(candidacy), std::move(mine));
}

absl::StatusOr<std::string> FileMetaStore::Leader(absl::string_view name) {
  absl::Status valid = ValidateElectionName(name);
  if (!valid.ok()) return valid;
  const absl::Status nobody = absl::NotFoundError(absl::StrCat("nobody leads ", name, " in ", path_));
  absl::StatusOr<UniqueFd> lock = OpenLock(dir_->get(), name, path_);
  if (!lock.ok()) return lock.status();
  // A shared lock for a moment: a candidate that comes now waits for it, and loses nothing.
  if (Flock(lock->get(), LOCK_SH | LOCK_NB) == 0) return nobody;
  const std::string file = LeaderFile(name);
  absl::StatusOr<std::string> leader =
      ReadValueFile(dir_->get(), file, kMaxValueBytes, absl::StrCat(path_, "/", file));
  if (absl::IsNotFound(leader.status())) return nobody;
  return leader;
}

}  // namespace sherd::runtime

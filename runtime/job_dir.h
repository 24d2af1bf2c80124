// The home of one job on this host: <shm root>/sherd-<uid>/<job>-<uuid>/. Segments, sockets and small files
// of the job stand in it, and it says by itself whether the job lives.
//
//   absl::StatusOr<JobDir> dir = JobDir::Create(kDefaultShmRoot, "gpt");      // the first process of a job
//   absl::StatusOr<JobDir> same = JobDir::Open(path, JobDir::Hold::kMember);  // every other member
//   ...
//   dir->RemoveOwn();                                                         // the last one takes it away
//
// Life. Every member process holds a shared flock on the directory, which the kernel drops when the process
// ends however it ends; a job is live while anyone holds one. So a killed job needs no cleaning to be
// recognised as dead, and Gc() removes dead jobs and nothing else. (The lock passes to children forked
// without exec, as all flocks do: a job is live until they are gone too.)
//
// Safety. <shm root> is usually writable by everyone, so the directory sherd-<uid> must be a directory, not a
// link, owned by this user, mode 0700; inside it no other user can put anything.
//
// Errors name the path and the remedy in one line. Calls block on the file system only, and on each other
// (one lock per user and root). Static functions are thread-safe; an object is thread-compatible.
#ifndef SHERD_RUNTIME_JOB_DIR_H_
#define SHERD_RUNTIME_JOB_DIR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

inline constexpr char kDefaultShmRoot[] = "/dev/shm";
// Of the environment: a directory to be used instead. For containers whose /dev/shm is too small or shared
// with others, and for several "hosts" on one machine; every process of a host must have the same.
inline constexpr char kShmRootVariable[] = "SHERD_SHM_ROOT";
// What main() makes of that variable's value, null when it is not set. INVALID_ARGUMENT: not an absolute
// path.
absl::StatusOr<std::string> ShmRoot(const char* value);

// 1 to 40 characters of [A-Za-z0-9._-].
absl::Status ValidateJobName(absl::string_view job);

class JobDir {
 public:
  // kMember keeps the job alive while the JobDir exists; kNone is for readers that must not.
  enum class Hold { kMember, kNone };

  struct Info {
    std::string job;
    std::string path;
    bool live = false;
    // Memory (or disk) its files take, in bytes.
    int64_t bytes = 0;
  };

  struct Removed {
    std::string path;
    int64_t bytes = 0;
  };

  // Makes a new directory for `job` and holds it as a member.
  //   INVALID_ARGUMENT     the name
  //   ALREADY_EXISTS       a live job of this user has the name (dead ones do not matter)
  //   FAILED_PRECONDITION  sherd-<uid> is not ours or not private
  //   NOT_FOUND            no directory `root`
  static absl::StatusOr<JobDir> Create(const std::string& root, absl::string_view job);

  // Opens an existing one. NOT_FOUND when it is not there or was just removed; FAILED_PRECONDITION when it is
  // not a private directory of this user; INVALID_ARGUMENT when `path` is not <...>/<job>-<uuid>.
  static absl::StatusOr<JobDir> Open(const std::string& path, Hold hold);

  // The jobs of this user under `root`, by path. Empty when there never was one.
  static absl::StatusOr<std::vector<Info>> List(const std::string& root);

  // Removes a dead job's directory and what is in it, following no link; then sherd-<uid> if it is empty.
  // FAILED_PRECONDITION when the job is live; NOT_FOUND.
  static absl::Status Remove(const std::string& path);

  // Removes every dead job of this user under `root`; returns them with the bytes they took. Leaves live jobs
  // and names that are not <job>-<uuid> alone.
  static absl::StatusOr<std::vector<Removed>> Gc(const std::string& root);

  JobDir(JobDir&&) = default;
  JobDir& operator=(JobDir&&) = default;

  // For a member at orderly shutdown: removes the directory if no other member is left and returns true;
  // returns false and changes nothing otherwise. REQUIRES: opened as a member.
  absl::StatusOr<bool> RemoveOwn();

  const std::string& path() const { return path_; }
  const std::string& job() const { return job_; }
  // 36 characters, unique to this run of the job.
  const std::string& uuid() const { return uuid_; }
  // 64 bits of the uuid: segments carry it.
  uint64_t id() const { return id_; }
  // The open directory, for *at() calls. Owned by this object.
  int fd() const { return fd_.get(); }

 private:
  JobDir(std::string path, std::string job, std::string uuid, Hold hold, UniqueFd fd);

  std::string path_;
  std::string job_;
  std::string uuid_;
  uint64_t id_ = 0;
  Hold hold_ = Hold::kNone;
  UniqueFd fd_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_JOB_DIR_H_

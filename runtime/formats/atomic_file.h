// A file that appears under its name whole or not at all.
//
//   auto file = AtomicFile::Create("out/model.safetensors", bytes, {});
//   (*file)->WriteAt(0, head);  (*file)->WriteAt(4096, part);   // any order, any thread
//   (*file)->Commit();                                          // now it is there
//
// Until Commit the bytes stand beside it in `.<name>.partial`, locked so that two writers of one target do
// not mix; what a killed writer left there is taken over by the next one.
#ifndef SHERD_RUNTIME_FORMATS_ATOMIC_FILE_H_
#define SHERD_RUNTIME_FORMATS_ATOMIC_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

// The status of a failed system call, in one line with what to do about it: NOT_FOUND, PERMISSION_DENIED,
// RESOURCE_EXHAUSTED (no space, quota, file too large, no descriptors) or absl's own mapping.
// `error` is an errno; `action` as in "cannot <action> <path>".
absl::Status FileError(int error, absl::string_view action, absl::string_view path);

// Reads exactly out.size() bytes of `fd` at `offset`. DATA_LOSS if the file ends before. Blocks; thread-safe.
absl::Status ReadExactly(int fd, absl::string_view path, uint64_t offset, absl::Span<char> out);

// Opens a regular file for reading and tells its size; never waits (as it might for a pipe). The caller
// closes it. FileError, or INVALID_ARGUMENT if it is not a regular file.
absl::StatusOr<runtime::UniqueFd> OpenRegular(const std::string& path, uint64_t* bytes);

// Thread-safe but for Commit, which must come after the last WriteAt has returned.
class AtomicFile {
 public:
  enum class OnAbandon {
    kRemove,  // a writer destroyed before Commit leaves nothing
    kKeep,    // it leaves the partial file, for a later writer to resume
  };
  struct Options {
    OnAbandon on_abandon = OnAbandon::kRemove;
    // Take over the content of a partial file of exactly the wanted size; else it is emptied.
    bool resume = false;
  };

  // Creates the partial file with `bytes` bytes of reserved space, so that a full disk shows now and not at
  // the end. The directory must exist. Errors: those of FileError; FAILED_PRECONDITION if another writer is
  // at it; INVALID_ARGUMENT if `path` names no file.
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path, uint64_t bytes,
                                                            Options options);
  // Whether Create could begin there, as far as that can be told without leaving a trace: for a program that
  // writes only after hours of work. Errors as Create.
  static absl::Status CheckTarget(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Whether the content of an earlier partial file was taken over.
  bool resumed() const { return resumed_; }
  uint64_t bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

  // Writes at `offset`. OUT_OF_RANGE past bytes(); else FileError. Blocks.
  absl::Status WriteAt(uint64_t offset, absl::string_view bytes);
  // Reads back. Errors as ReadExactly.
  absl::Status ReadAt(uint64_t offset, absl::Span<char> out) const;

  // Syncs, renames to path(), syncs the directory: after OK the file survives a power cut. After an error
  // path() is as before (or, if only the last sync failed, in place but perhaps not durable). Once only.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string name, uint64_t bytes, OnAbandon on_abandon);

  // The file of that name, its directory open, nothing created yet.
  static absl::StatusOr<std::unique_ptr<AtomicFile>> At(const std::string& path, uint64_t bytes,
                                                        OnAbandon on_abandon);
  absl::Status OpenDirectory(const std::string& directory);
  absl::Status OpenLocked();
  absl::Status Reserve(bool resume);

  const std::string path_;
  const std::string name_;     // last component of path_
  const std::string partial_;  // `.<name>.partial`
  const uint64_t bytes_;
  const OnAbandon on_abandon_;
  runtime::UniqueFd directory_fd_;
  runtime::UniqueFd fd_;
  bool resumed_ = false;
  bool ours_ = false;  // the partial file exists and we hold its lock
};

// All of a small regular file. OUT_OF_RANGE if it has more than `max_bytes`; INVALID_ARGUMENT if it is not
// regular; else as FileError and ReadExactly.
absl::StatusOr<std::string> ReadWhole(const std::string& path, uint64_t max_bytes);

// Writes all of a small file through an AtomicFile.
absl::Status WriteWhole(const std::string& path, absl::string_view bytes);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_ATOMIC_FILE_H_

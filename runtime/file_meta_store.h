// MetaStore in a directory: for the processes of one host, or of several on a file system whose links,
// renames and locks are atomic. No server, nothing to clean after a crash.
//
//   absl::StatusOr<std::unique_ptr<FileMetaStore>> store = FileMetaStore::Open("/var/lib/sherd/gpt");
//
// Layout: one file per key ('/' stored as '+') holding a length, a crc32c and the value; ".lock.NAME" and
// ".leader.NAME" per election; ".tmp.*" while a value is written. A value is written aside, synced, then
// linked (CreateIfAbsent) or renamed (Put), then the directory is synced. Leadership is a flock, which the
// kernel releases when the process ends. Watches are inotify: changes made by other hosts of a network file
// system are not seen.
#ifndef SHERD_RUNTIME_FILE_META_STORE_H_
#define SHERD_RUNTIME_FILE_META_STORE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/meta_store.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

class FileMetaStore final : public MetaStore {
 public:
  // Opens the store in `dir`, which is created (mode 0700) if only its last part is missing. Sweeps what
  // killed writers left. FAILED_PRECONDITION when `dir` is not a directory of this user or others may write
  // to it.
  static absl::StatusOr<std::unique_ptr<FileMetaStore>> Open(const std::string& dir);

  absl::StatusOr<std::string> Get(absl::string_view key) override;
  absl::Status CreateIfAbsent(absl::string_view key, absl::string_view value) override;
  absl::Status Put(absl::string_view key, absl::string_view value) override;
  absl::Status Delete(absl::string_view key) override;
  absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix) override;
  absl::StatusOr<std::unique_ptr<WatchHandle>> Watch(absl::string_view prefix,
                                                     WatchCallback callback) override;
  // `lost` is never called. A candidate that withdraws while another leads keeps one sleeping thread until
  // that one stops leading.
  absl::StatusOr<std::unique_ptr<Leadership>> Elect(absl::string_view name, absl::string_view identity,
                                                    std::function<void()> gained,
                                                    std::function<void()> lost) override;
  absl::StatusOr<std::string> Leader(absl::string_view name) override;

 private:
  FileMetaStore(std::string path, std::shared_ptr<const UniqueFd> dir, std::function<bool()> held);
  // Of a change of `key` to `value`: whether it is one, and may be made.
  absl::Status Check(absl::string_view key, absl::string_view value) const;

  const std::string path_;
  // Shared with watches and candidacies, which may outlive the store.
  const std::shared_ptr<const UniqueFd> dir_;
  const std::function<bool()> held_;  // of a leader's store; null otherwise
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_FILE_META_STORE_H_

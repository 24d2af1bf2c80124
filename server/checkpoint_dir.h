// The directory that checkpoints are saved in: a checkpoint appears in it whole, or not at all.
//
//   auto dir = CheckpointDir::Open("/data/run1");       // removes what dead saves left
//   ... write files into (*dir)->staging(), all synced; manifest.json last ...
//   (*dir)->Commit("step-40");                           // then `latest` names it
//   std::vector<std::string> gone = (*dir)->Keep(3);
//
// Until Commit the files stand in a hidden directory beside the checkpoints, `.saving-<random>.partial`,
// which is locked by its writer; so is the directory itself against a second writer. Symbolic links: the
// directory may be one, what stands in it is never followed when something is replaced or removed.
// Thread-compatible. Everything blocks on the file system.
#ifndef SHERD_SERVER_CHECKPOINT_DIR_H_
#define SHERD_SERVER_CHECKPOINT_DIR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"

namespace sherd::server {

class CheckpointDir {
 public:
  // Makes the directory if only its last component is missing.
  //   INVALID_ARGUMENT     a relative path
  //   FAILED_PRECONDITION  it is no directory, or another save is at work in it
  //   NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED   as formats::FileError
  static absl::StatusOr<std::unique_ptr<CheckpointDir>> Open(const std::string& path);
  // Removes what was not committed.
  ~CheckpointDir();
  CheckpointDir(const CheckpointDir&) = delete;
  CheckpointDir& operator=(const CheckpointDir&) = delete;

  const std::string& path() const { return path_; }
  // Path of the directory to write into; made by Open.
  std::string staging() const { return path_ + "/" + staging_name_; }

  // Removes from the staging directory all but `files` (bytes by name): what writers who died have left.
  //   DATA_LOSS  names one that is not there in its size
  absl::Status Settle(const std::map<std::string, int64_t>& files) const;

  // Gives the staging directory its name, durably, in the place of what had it, and lets `latest` name it.
  // REQUIRES: the files in it are synced and a manifest is among them. FAILED_PRECONDITION: the tag is a
  // file, or is there on a file system that cannot exchange directories. After an error the directory is as
  // before, or (when only `latest` could not be written, which the message then says) has one more
  // checkpoint.
  absl::Status Commit(const std::string& tag);

  // Removes the oldest checkpoints beyond `keep`; never the one just committed or what `latest` names. Those
  // with files in them that no save wrote are left alone. The tags removed.
  std::vector<std::string> Keep(int keep);

 private:
  CheckpointDir(std::string path, runtime::UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  absl::Status MakeStaging();
  void RemoveLeftovers();
  // All of a directory of files; false if something in it is not a checkpoint's.
  bool RemoveTree(const std::string& name);

  const std::string path_;
  const runtime::UniqueFd fd_;  // of path_, locked
  std::string staging_name_;    // empty once committed
  runtime::UniqueFd staging_fd_;
  std::string committed_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_CHECKPOINT_DIR_H_

// Walks over directories through descriptors: nothing here follows a link, so nobody who can write into a
// directory can point a removal elsewhere.
//
//   absl::Status s = RemoveContents(dir_fd, "/dev/shm/sherd-1000/gpt-...");
//
// Paths are for messages only. Entries that vanish meanwhile are no error. Thread-safe.
#ifndef SHERD_RUNTIME_DIR_TREE_H_
#define SHERD_RUNTIME_DIR_TREE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sherd::runtime {

// Names in the directory, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListDir(int dir_fd);

// Bytes that the directory's files take (blocks, not lengths), subdirectories included.
absl::StatusOr<int64_t> BytesUsed(int dir_fd, const std::string& path);

// Removes everything in the directory, and keeps the directory itself.
absl::Status RemoveContents(int dir_fd, const std::string& path);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_DIR_TREE_H_

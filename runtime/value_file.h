// A value in a file that is whole or absent: framed with its length and crc32c, written aside, synced, then
// put in place.
//
//   absl::Status s = WriteValueFile(dir_fd, "epoch.7", value, IfExists::kFail, path);
//   absl::StatusOr<std::string> value = ReadValueFile(dir_fd, "epoch.7", 1 << 20, path);
//
// Blocks on the disk. Thread-safe and process-safe.
#ifndef SHERD_RUNTIME_VALUE_FILE_H_
#define SHERD_RUNTIME_VALUE_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::runtime {

enum class IfExists { kFail, kReplace };

// ALREADY_EXISTS with kFail when the name is taken; RESOURCE_EXHAUSTED when the disk is full. `where` is the
// file's path, for messages.
absl::Status WriteValueFile(int dir_fd, const std::string& name, absl::string_view value, IfExists if_exists,
                            const std::string& where);

// NOT_FOUND; DATA_LOSS naming `where` when the file is not what WriteValueFile wrote, or holds more than
// `max_bytes`.
absl::StatusOr<std::string> ReadValueFile(int dir_fd, const std::string& name, size_t max_bytes,
                                          const std::string& where);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_VALUE_FILE_H_

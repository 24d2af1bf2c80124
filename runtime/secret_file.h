// The secret of a job: what its hosts and callers prove to know. It stands in a file of its owner alone.
//
//   absl::StatusOr<Secret> secret = CreateSecretFile(dir + "/secret");   // the first host
//   absl::StatusOr<Secret> same = ReadSecretFile("job.secret");          // those that join, with a copy
//   context.AddMetadata("authorization", "Bearer " + RpcToken(*same));
//
// The file is what text editors and `head -c` make: white space around the secret does not belong to it.
// Its bytes are never printed, and are overwritten when the last copy of the Secret goes.
//
// Blocks on the file system. Thread-safe.
#ifndef SHERD_RUNTIME_SECRET_FILE_H_
#define SHERD_RUNTIME_SECRET_FILE_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::runtime {

inline constexpr size_t kMinSecretBytes = 16;
inline constexpr size_t kMaxSecretBytes = 4096;

// Cheap to copy.
class Secret {
 public:
  // INVALID_ARGUMENT: fewer than kMinSecretBytes or more than kMaxSecretBytes bytes.
  static absl::StatusOr<Secret> Of(absl::string_view bytes);

  absl::string_view bytes() const { return *bytes_; }

 private:
  explicit Secret(std::shared_ptr<const std::string> bytes) : bytes_(std::move(bytes)) {}
  std::shared_ptr<const std::string> bytes_;
};

//   NOT_FOUND            there is no such file
//   PERMISSION_DENIED    it is another user's, or others may read or write it: names the mode and the remedy
//   FAILED_PRECONDITION  it is no regular file
//   INVALID_ARGUMENT     it holds too few or too many bytes
// Nothing of what is in the file stands in an error.
absl::StatusOr<Secret> ReadSecretFile(const std::string& path);

// Makes the file, mode 0600, with 64 random hexadecimal digits (256 bits). It is whole as soon as it has its
// name. ALREADY_EXISTS when there is one: a secret is never replaced.
absl::StatusOr<Secret> CreateSecretFile(const std::string& path);

// What stands for the secret in calls over RPC: 64 hexadecimal digits, from which it cannot be computed. Who
// overhears one may call as its bearer, but cannot join the data connections, which ask for the secret
// itself.
std::string RpcToken(const Secret& secret);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_SECRET_FILE_H_

#include "runtime/secret_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/hmac.h"
#include "runtime/temp_name.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

absl::Status CheckFile(const std::string& path, const struct stat& file) {
  if (!S_ISREG(file.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the secret ", path, " is not a regular file: give the path of one"));
  }
  if (file.st_uid != ::geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat("the secret ", path, " belongs to user ", file.st_uid,
                                                    ", not to this one (", ::geteuid(),
                                                    "): copy it to a file of your own"));
  }
  if ((file.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "others may open the secret %s (mode %04o): chmod 600 it, and make a new one if they did", path,
        file.st_mode & 07777));
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::ErrnoToStatus(errno, "write");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return ::fsync(fd) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "fsync");
}

}  // namespace

absl::StatusOr<Secret> Secret::Of(absl::string_view bytes) {
  if (bytes.size() < kMinSecretBytes || bytes.size() > kMaxSecretBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a secret has ", kMinSecretBytes, " to ", kMaxSecretBytes,
                                                   " bytes, this one ", bytes.size(),
                                                   ": make one with `openssl rand -hex 32`"));
  }
  return Secret(std::shared_ptr<const std::string>(new std::string(bytes), [](std::string* owned) {
    Forget(owned->data(), owned->size());
    delete owned;
  }));
}

absl::StatusOr<Secret> ReadSecretFile(const std::string& path) {
  // Not blocking: a pipe without a writer would.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the secret ", path));
  struct stat file;
  if (::fstat(fd.get(), &file) != 0) return absl::ErrnoToStatus(errno, path);
  if (absl::Status s = CheckFile(path, file); !s.ok()) return s;
  std::array<char, kMaxSecretBytes + 2>
      buffer;  // one line end more than the secret, and one byte to see more
  size_t have = 0;
  while (have < buffer.size()) {
    const ssize_t n = ::read(fd.get(), buffer.data() + have, buffer.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the secret ", path));
    if (n == 0) break;
    have += static_cast<size_t>(n);
  }
  absl::StatusOr<Secret> secret =
      Secret::Of(absl::StripAsciiWhitespace(absl::string_view(buffer.data(), have)));
  Forget(buffer.data(), buffer.size());
  if (secret.ok()) return secret;
  return absl::Status(secret.status().code(), absl::StrCat(path, ": ", secret.status().message()));
}

absl::StatusOr<Secret> CreateSecretFile(const std::string& path) {
  std::array<char, 32> random;
  FillRandom(random.data(), random.size());
  absl::StatusOr<Secret> secret =
      Secret::Of(absl::BytesToHexString(absl::string_view(random.data(), random.size())));
  Forget(random.data(), random.size());
  if (!secret.ok()) return secret.status();
  const size_t slash = path.rfind('/');
  const std::string dir = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  const std::string temp = dir + TempName(slash == std::string::npos ? path : path.substr(slash + 1));
  UniqueFd fd(::open(temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create the secret ", path));
  absl::Status status = WriteAll(fd.get(), absl::StrCat(secret->bytes(), "\n"));
  // A link, not a rename: it fails where the name is taken.
  if (status.ok() && ::link(temp.c_str(), path.c_str()) != 0) {
    status = errno == EEXIST
                 ? absl::AlreadyExistsError("there is a file of this name: use it, or choose another name")
                 : absl::ErrnoToStatus(errno, "link");
  }
  ::unlink(temp.c_str());
  if (status.ok()) return secret;
  return absl::Status(status.code(), absl::StrCat("cannot create the secret ", path, ": ", status.message()));
}

std::string RpcToken(const Secret& secret) {
  return absl::BytesToHexString(AsBytes(HmacSha256(secret.bytes(), "sherd rpc token 1")));
}

}  // namespace sherd::runtime

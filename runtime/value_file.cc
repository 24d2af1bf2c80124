#include "runtime/value_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "runtime/crc32c.h"
#include "runtime/temp_name.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

constexpr char kMagic[4] = {'S', 'M', 'V', '1'};

struct Frame {
  char magic[4];
  uint32_t crc;
  uint64_t bytes;
};
static_assert(sizeof(Frame) == 16);

absl::Status WriteAll(int fd, absl::string_view data, const std::string& where) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", where));
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status Damaged(const std::string& where, absl::string_view how) {
  return absl::DataLossError(absl::StrCat(
      where, " is damaged (", how, "): restore it from a backup, or remove it if it can be done without"));
}

}  // namespace

absl::Status WriteValueFile(int dir_fd, const std::string& name, absl::string_view value, IfExists if_exists,
                            const std::string& where) {
  const std::string temp = TempName(name);
  UniqueFd fd(::openat(dir_fd, temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", where));
  absl::Cleanup remove = [&] { ::unlinkat(dir_fd, temp.c_str(), 0); };
  Frame frame;
  std::memcpy(frame.magic, kMagic, sizeof(kMagic));
  frame.crc = Crc32c(value);
  frame.bytes = value.size();
  absl::Status written = WriteAll(fd.get(), {reinterpret_cast<const char*>(&frame), sizeof(frame)}, where);
  if (written.ok()) written = WriteAll(fd.get(), value, where);
  if (!written.ok()) return written;
  // The name may only ever stand for bytes that are on the disk.
  if (::fsync(fd.get()) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", where));
  const int rc = if_exists == IfExists::kFail ? ::linkat(dir_fd, temp.c_str(), dir_fd, name.c_str(), 0)
                                              : ::renameat(dir_fd, temp.c_str(), dir_fd, name.c_str());
  if (rc != 0) {
    if (errno == EEXIST) return absl::AlreadyExistsError(absl::StrCat(where, " exists"));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot put ", where, " in place"));
  }
  if (if_exists == IfExists::kReplace) std::move(remove).Cancel();
  if (::fsync(dir_fd) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync the directory of ", where));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadValueFile(int dir_fd, const std::string& name, size_t max_bytes,
                                          const std::string& where) {
  UniqueFd fd(::openat(dir_fd, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.ok()) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat(where, " does not exist"));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", where));
  }
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return absl::ErrnoToStatus(errno, where);
  if (!S_ISREG(st.st_mode)) return Damaged(where, "not a regular file");
  Frame frame;
  const uint64_t size = static_cast<uint64_t>(st.st_size);
  if (size < sizeof(frame) || size - sizeof(frame) > max_bytes)
    return Damaged(where, absl::StrCat(size, " bytes"));
  std::string content(size, '\0');
  size_t have = 0;
  while (have < content.size()) {
    const ssize_t n = ::read(fd.get(), &content[have], content.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", where));
    if (n == 0) return Damaged(where, "it shrank");
    have += static_cast<size_t>(n);
  }
  std::memcpy(&frame, content.data(), sizeof(frame));
  if (std::memcmp(frame.magic, kMagic, sizeof(kMagic)) != 0) return Damaged(where, "not a stored value");
  if (frame.bytes != size - sizeof(frame)) return Damaged(where, "wrong length");
  content.erase(0, sizeof(frame));
  if (Crc32c(content) != frame.crc) return Damaged(where, "wrong checksum");
  return content;
}

}  // namespace sherd::runtime

#include "runtime/process_stat.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

// The second field, the program's name, may hold spaces and parentheses, so fields are counted from the last
// ')'.
absl::StatusOr<ProcessStat> ReadProcessStat(pid_t pid) {
  const auto gone = [pid] { return absl::NotFoundError(absl::StrCat("no process ", pid, " runs here")); };
  const std::string path = absl::StrCat("/proc/", pid, "/stat");
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return errno == ENOENT ? gone() : absl::ErrnoToStatus(errno, path);
  char buffer[2048];
  const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
  if (n < 0) return errno == ESRCH ? gone() : absl::ErrnoToStatus(errno, path);
  const absl::string_view text(buffer, static_cast<size_t>(n));
  const size_t close = text.rfind(')');
  constexpr int kState = 1, kStartTime = 20;  // index after the split: the first field is empty
  if (close != absl::string_view::npos) {
    const std::vector<absl::string_view> fields = absl::StrSplit(text.substr(close + 1), ' ');
    ProcessStat stat;
    if (fields.size() > kStartTime && fields[kState].size() == 1 &&
        absl::SimpleAtoi(fields[kStartTime], &stat.start_ticks)) {
      stat.state = fields[kState][0];
      return stat;
    }
  }
  return absl::InternalError(absl::StrCat(path, " does not look like Linux's: ", text));
}

bool IsStopped(pid_t pid, uint64_t start_ticks) {
  const absl::StatusOr<ProcessStat> stat = ReadProcessStat(pid);
  return stat.ok() && stat->start_ticks == start_ticks && (stat->state == 'T' || stat->state == 't');
}

}  // namespace sherd::runtime

#include "client/cli/keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/clock.h"
#include "runtime/job_dir.h"

namespace sherd::cli {
namespace {

// Reads messages "d<path>\n", "+<group>\n", "-<group>\n", "q\n" until "q" or the end of the pipe, which is
// that of the supervisor.
int Keep(int pipe) {
  std::string text, directory;
  std::set<pid_t> groups;
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::read(pipe, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer, n);
    size_t end;
    while ((end = text.find('\n')) != std::string::npos) {
      const std::string argument = text.substr(1, end - 1);
      const char what = text[0];
      text.erase(0, end + 1);
      int group = 0;
      if (what == 'q') return 0;
      if (what == 'd') directory = argument;
      if (what == '+' && absl::SimpleAtoi(argument, &group)) groups.insert(group);
      if (what == '-' && absl::SimpleAtoi(argument, &group)) groups.erase(group);
    }
  }
  for (pid_t group : groups) ::kill(-group, SIGKILL);
  if (directory.empty()) return 0;
  // The dying hold the directory until the kernel is done with them.
  const absl::Time limit = runtime::SteadyNow() + absl::Seconds(30);
  while (runtime::JobDir::Remove(directory).code() == absl::StatusCode::kFailedPrecondition &&
         runtime::SteadyNow() < limit) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  return 0;
}

// Shows this process as what it is in ps: with the supervisor's command line, whoever looks for a trainer by
// its command would take the keeper for it too.
void NameProcess() {
  constexpr char kName[] = "sherd-keeper";
  ::prctl(PR_SET_NAME, kName);
  std::ifstream file("/proc/self/stat");
  const std::string stat((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  // Fields count from 3 on behind the name, which may hold anything: 48 and 49 are where the arguments lie.
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(stat.rfind(')') + 1), ' ', absl::SkipEmpty());
  uint64_t begin = 0, end = 0;
  if (fields.size() < 47 || !absl::SimpleAtoi(fields[45], &begin) || !absl::SimpleAtoi(fields[46], &end))
    return;
  if (begin == 0 || end < begin + sizeof(kName)) return;
  char* arguments = reinterpret_cast<char*>(begin);
  std::memset(arguments, 0, end - begin);
  std::memcpy(arguments, kName, sizeof(kName));
}

}  // namespace

absl::StatusOr<Keeper> Keeper::Start() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  runtime::UniqueFd reading(fds[0]), writing(fds[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "cannot fork");
  if (pid > 0) return Keeper(std::move(writing), pid);
  writing.Reset();
  // Out of the terminal's reach, and holding nobody's pipes open.
  ::setpgid(0, 0);
  NameProcess();
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
  ::_exit(Keep(reading.get()));
}

Keeper::~Keeper() { Dismiss(); }

void Keeper::Send(const std::string& message) {
  for (ssize_t n; (n = ::write(pipe_.get(), message.data(), message.size())) < 0 && errno == EINTR;) {
  }
}

void Keeper::GuardDirectory(const std::string& path) { Send(absl::StrCat("d", path, "\n")); }
void Keeper::GuardGroup(pid_t group) { Send(absl::StrCat("+", group, "\n")); }
void Keeper::DropGroup(pid_t group) { Send(absl::StrCat("-", group, "\n")); }

void Keeper::Dismiss() {
  if (pid_ == 0) return;
  Send("q\n");
  pipe_.Reset();
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
}

}  // namespace sherd::cli

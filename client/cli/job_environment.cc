#include "client/cli/job_environment.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/config/deepspeed_config.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {
namespace {

bool IsFile(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool IsProgram(const std::string& path) { return IsFile(path) && ::access(path.c_str(), X_OK) == 0; }

}  // namespace

std::string DefaultJobName(const std::string& program, int pid) {
  std::string name = program.substr(program.rfind('/') + 1).substr(0, 24);
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-') c = '_';
  }
  if (name.empty()) name = "job";
  return pid < 0 ? name : absl::StrCat(name, "-", pid);
}

absl::StatusOr<std::string> FindProgram(const std::string& program, const std::string& path) {
  if (program.find('/') != std::string::npos) {
    if (IsProgram(program)) return program;
    if (!IsFile(program)) return absl::NotFoundError(absl::StrCat("no program at ", program));
    return absl::PermissionDeniedError(absl::StrCat(program, " may not be executed; chmod +x it"));
  }
  for (absl::string_view directory : absl::StrSplit(path, ':')) {
    const std::string candidate = absl::StrCat(directory.empty() ? "." : directory, "/", program);
    if (IsProgram(candidate)) return candidate;
  }
  return absl::NotFoundError(absl::StrCat("no program \"", program, "\" in PATH; give its path"));
}

absl::StatusOr<std::string> FindServerProgram(const std::string& self_dir, const std::string& path) {
  for (const char* place : {"/sherdd", "/../../server/sherdd"}) {
    if (const std::string candidate = absl::StrCat(self_dir, place); IsProgram(candidate)) return candidate;
  }
  absl::StatusOr<std::string> found = FindProgram("sherdd", path);
  if (found.ok()) return found;
  return absl::NotFoundError(absl::StrCat("no sherdd beside sherd in ", self_dir,
                                          " or in PATH; build //server:sherdd or install it"));
}

std::vector<std::pair<std::string, std::string>> TrainerEnvironment(const TrainerPlace& place,
                                                                    const GetEnv& getenv) {
  std::vector<std::pair<std::string, std::string>> environment = {
      {"RANK", absl::StrCat(place.rank)},
      {"WORLD_SIZE", absl::StrCat(place.world_size)},
      {"LOCAL_RANK", absl::StrCat(place.rank - place.first_rank)},
      {"LOCAL_WORLD_SIZE", absl::StrCat(place.local_world)},
      {"MASTER_ADDR", place.master_address},
      {"MASTER_PORT", absl::StrCat(place.master_port)},
      {"SHERD_ENDPOINT", absl::StrJoin(place.endpoints, ",")},
      {"SHERD_JOB", place.job},
  };
  if (!place.config.empty()) environment.emplace_back(DeepSpeedConfig::kVariable, place.config);
  if (!place.reduce_groups.empty()) environment.emplace_back("SHERD_REDUCE_GROUPS", place.reduce_groups);
  if (place.replicas > 0) environment.emplace_back("SHERD_REPLICAS", absl::StrCat(place.replicas));
  const std::string threads = absl::StrCat(std::max(1, place.cores / place.local_world));
  const std::pair<const char*, std::string> defaults[] = {
      {"OMP_NUM_THREADS", threads},
      {"MKL_NUM_THREADS", threads},
      {"OPENBLAS_NUM_THREADS", threads},
      {"GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"},
  };
  for (const auto& [name, value] : defaults) {
    if (getenv(name) == nullptr) environment.emplace_back(name, value);
  }
  return environment;
}

absl::Status CheckSpace(int fd, const std::string& root) {
  // Less does not even hold what servers write before a trainer says how large the model is.
  constexpr uint64_t kLeastFree = 256 << 10;
  struct statvfs info;
  if (::fstatvfs(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot look at ", root));
  const uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (free >= kLeastFree) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      root, " is full (", free, " bytes free); free some: `sherd gc` removes what dead jobs left"));
}

absl::StatusOr<int> FreePort() {
  runtime::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (!fd.ok() || ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return absl::ErrnoToStatus(errno, "cannot find a free TCP port");
  }
  return ntohs(address.sin_port);
}

}  // namespace sherd::cli

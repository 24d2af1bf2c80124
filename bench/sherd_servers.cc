#include "bench/sherd_servers.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"

namespace sherd::bench {
namespace {

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::_Exit(1);
}

void AddFlags(const SherdServers::Host& host, bool first, std::vector<std::string>* argv) {
  for (const auto& [flag, value] :
       std::initializer_list<std::pair<const char*, std::string>>{{"--hosts", absl::StrCat(host.count)},
                                                                  {"--host", absl::StrCat(host.index)},
                                                                  {"--trainers", absl::StrCat(host.trainers)},
                                                                  {"--data-address", host.address},
                                                                  {"--secret-file", host.secret_file}}) {
    argv->emplace_back(flag);
    argv->push_back(value);
  }
  if (host.index > 0) argv->push_back(absl::StrCat("--first-host=", host.first_host));
  if (host.index == 0 && first) argv->push_back(absl::StrCat("--listen=", host.first_host));
  if (host.remote) argv->emplace_back("--allow-remote");
}

}  // namespace

SherdServers::SherdServers(const std::string& job, int count, const std::string& program,
                           const std::optional<Host>& host)
    : job_(job) {
  std::string root = runtime::kDefaultShmRoot;
  if (host.has_value()) {
    root = root_ = absl::StrCat(root, "/", job, "-h", host->index);
    if (::mkdir(root.c_str(), 0700) != 0) Must(absl::StatusOr<int>(absl::ErrnoToStatus(errno, root)));
  }
  dir_ = Must(runtime::JobDir::Create(root, job));
  for (int m = 0; m < count; ++m) {
    const std::string id = absl::StrCat(host.has_value() && host->index > 0 ? "h1-s" : "s", m);
    const std::string address = absl::StrCat("unix:", dir_->path(), "/", id, ".sock");
    runtime::ChildProcess::Options options;
    options.argv = {program,
                    "--job",
                    job,
                    "--job-dir",
                    dir_->path(),
                    "--id",
                    id,
                    "--listen",
                    address,
                    "--expect",
                    std::to_string(count),
                    "--log-level",
                    host.has_value() ? "error" : "warn"};  // of several hosts one ends before the other
    if (host.has_value()) AddFlags(*host, /*first=*/m == 0, &options.argv);
    servers_.push_back(Must(runtime::ChildProcess::Spawn(options)));
    absl::StrAppend(&endpoint_, m == 0 ? "" : ",", address);
  }
}

void SherdServers::Signal(int signal) {
  for (runtime::ChildProcess& s : servers_) s.Signal(signal).IgnoreError();
}

SherdServers::~SherdServers() {
  Signal(SIGTERM);
  const absl::Time deadline = runtime::SteadyNow() + absl::Seconds(10);
  for (runtime::ChildProcess& s : servers_) s.Wait(deadline).status().IgnoreError();
  servers_.clear();
  if (dir_.has_value()) dir_->RemoveOwn().status().IgnoreError();
  dir_.reset();
  std::error_code gone;
  if (!root_.empty()) std::filesystem::remove_all(root_, gone);
}

std::vector<pid_t> SherdServers::pids() const {
  std::vector<pid_t> pids;
  for (const runtime::ChildProcess& s : servers_) pids.push_back(s.identity().pid);
  return pids;
}

std::string SherdServers::InBuildTree(const std::string& path_there) {
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) return path_there;
  const std::string path(self);
  const std::string bench = path.substr(0, path.rfind('/'));
  return absl::StrCat(bench.substr(0, bench.rfind('/')), "/", path_there);
}

}  // namespace sherd::bench

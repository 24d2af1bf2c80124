#include "bench/sherd_servers.h"

#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>

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

}  // namespace

SherdServers::SherdServers(const std::string& job, int count, const std::string& program)
    : job_(job), dir_(Must(runtime::JobDir::Create(runtime::kDefaultShmRoot, job))) {
  for (int m = 0; m < count; ++m) {
    const std::string id = absl::StrCat("s", m);
    const std::string address = absl::StrCat("unix:", dir_->path(), "/", id, ".sock");
    runtime::ChildProcess::Options options;
    options.argv = {program,    "--job", job,        "--job-dir",           dir_->path(),  "--id", id,
                    "--listen", address, "--expect", std::to_string(count), "--log-level", "warn"};
    servers_.push_back(Must(runtime::ChildProcess::Spawn(options)));
    absl::StrAppend(&endpoint_, m == 0 ? "" : ",", address);
  }
}

SherdServers::~SherdServers() {
  for (runtime::ChildProcess& s : servers_) s.Signal(SIGTERM).IgnoreError();
  const absl::Time deadline = runtime::SteadyNow() + absl::Seconds(10);
  for (runtime::ChildProcess& s : servers_) s.Wait(deadline).status().IgnoreError();
  servers_.clear();
  if (dir_.has_value()) dir_->RemoveOwn().status().IgnoreError();
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

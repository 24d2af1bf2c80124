#include "bench/process_stats.h"

#include <dirent.h>
#include <stdlib.h>
#include <time.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace sherd::bench {
namespace {

// The sum of the numbers that stand behind `key` at the beginning of a line.
int64_t Sum(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  int64_t sum = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) == 0) sum += std::atoll(line.c_str() + key.size());
  }
  return sum;
}

}  // namespace

double CpuMs(pid_t pid) {
  clockid_t clock;
  timespec t{};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0) return 0;
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) / 1e6;
}

int64_t Sleeps(pid_t pid) {
  const std::string tasks = absl::StrCat("/proc/", pid, "/task");
  DIR* dir = opendir(tasks.c_str());
  if (dir == nullptr) return 0;
  int64_t sum = 0;
  while (const dirent* e = readdir(dir)) {
    if (e->d_name[0] != '.')
      sum += Sum(absl::StrCat(tasks, "/", e->d_name, "/status"), "voluntary_ctxt_switches:");
  }
  closedir(dir);
  return sum;
}

Pss ReadPss(pid_t pid) {
  const std::string rollup = absl::StrCat("/proc/", pid, "/smaps_rollup");
  return {Sum(rollup, "Pss:") * 1024, Sum(rollup, "Pss_Shmem:") * 1024};
}

double LoadAverage() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

}  // namespace sherd::bench

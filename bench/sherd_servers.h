// The servers of one job, for benchmarks: sherdd processes as `sherd run` would start them.
//
//   SherdServers servers("bench", 2, program);
//   trainer connects to servers.endpoint();
#ifndef SHERD_BENCH_SHERD_SERVERS_H_
#define SHERD_BENCH_SHERD_SERVERS_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "runtime/child_process.h"
#include "runtime/job_dir.h"

namespace sherd::bench {

class SherdServers {
 public:
  // Makes the job's directory and starts `count` servers in it. `program`: sherdd. Ends the process with a
  // line on any error.
  SherdServers(const std::string& job, int count, const std::string& program);
  // Stops them; nothing is left behind.
  ~SherdServers();
  SherdServers(const SherdServers&) = delete;
  SherdServers& operator=(const SherdServers&) = delete;

  const std::string& job() const { return job_; }
  // All of them, by comma.
  const std::string& endpoint() const { return endpoint_; }
  std::vector<pid_t> pids() const;

  // A program in the build tree that this one is in: "server/sherdd".
  static std::string InBuildTree(const std::string& path);
  static std::string DefaultProgram() { return InBuildTree("server/sherdd"); }

 private:
  const std::string job_;
  std::optional<runtime::JobDir> dir_;
  std::vector<runtime::ChildProcess> servers_;
  std::string endpoint_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_SHERD_SERVERS_H_

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
  // This machine as one host of a job of several, each with shared memory of its own.
  struct Host {
    int index = 0, count = 1;
    int trainers = 0;         // of this host
    std::string address;      // of its data port
    std::string first_host;   // HOST:PORT that the first host listens at for calls
    std::string secret_file;  // of the job
    bool remote = false;      // beyond the loopback
  };

  // Makes the job's directory and starts `count` servers in it. `program`: sherdd. Ends the process with a
  // line on any error.
  SherdServers(const std::string& job, int count, const std::string& program,
               const std::optional<Host>& host = std::nullopt);
  // Stops them; nothing is left behind.
  ~SherdServers();
  SherdServers(const SherdServers&) = delete;
  SherdServers& operator=(const SherdServers&) = delete;

  // So that those of several hosts can be told to at once: each waits for the others.
  void Signal(int signal);

  const std::string& job() const { return job_; }
  // All of them, by comma.
  const std::string& endpoint() const { return endpoint_; }
  std::vector<pid_t> pids() const;

  // A program in the build tree that this one is in: "server/sherdd".
  static std::string InBuildTree(const std::string& path);
  static std::string DefaultProgram() { return InBuildTree("server/sherdd"); }

 private:
  const std::string job_;
  std::string root_;  // of its own, of one host of several
  std::optional<runtime::JobDir> dir_;
  std::vector<runtime::ChildProcess> servers_;
  std::string endpoint_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_SHERD_SERVERS_H_

// `sherd run`: a job of N trainers and M servers on this host, from its first process to its last; or this
// host's part of a job of several.
//
//   int status = RunJob(options);
//
// supervisor.h decides, this acts: processes, their output, signals, the cluster's wishes. Nothing is left
// when it returns, nor (keeper.h) when it is killed: no process, no directory in shared memory, no socket, no
// file but the logs in `dir`.
#ifndef SHERD_CLIENT_CLI_RUN_COMMAND_H_
#define SHERD_CLIENT_CLI_RUN_COMMAND_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/host_plan.h"

namespace sherd::cli {

struct RunOptions {
  int trainers = 0;
  int servers = 0;  // 0: one per trainer
  int restarts = 3;
  // One that lives but does not move for so long while others wait is killed and started again.
  absl::Duration stall_timeout = absl::InfiniteDuration();
  // That a resize may ask for; 0: any. With a least number, the job goes on with fewer when one is out of
  // restarts.
  int min_trainers = 0, max_trainers = 0;
  std::string job;  // empty: the program's name and this process's id
  std::string dir;  // for logs; empty: none are kept
  // DeepSpeed's configuration, which is checked first and told to trainers (SHERD_CONFIG); empty: none.
  std::string config;
  // "2,2": ranks whose gradients are added up as those of one host would be (SHERD_REDUCE_GROUPS,
  // core/reduction_tree.h); empty: all are one group.
  std::string reduce_groups;
  int replicas = 0;
  uint64_t verify_every = 0;
  int threads = 0;    // of each server; 0: the server's own choice
  std::string store;  // of the servers: file:DIR or etcd://...; empty: in the job's directory
  bool tag_output = false;
  HostFlags hosts;
  std::vector<std::string> command;
  std::string shm_root;
};

// The exit status of `sherd run`: 0, or the first failing trainer's (128 + signal if it was killed), or 1
// after one line on stderr. Takes SIGINT, SIGTERM and SIGHUP. REQUIRES: this process has one thread; called
// once.
int RunJob(const RunOptions& options);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_RUN_COMMAND_H_

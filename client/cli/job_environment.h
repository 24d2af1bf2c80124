// What the processes of a job are told, and where their programs are: the parts of `sherd run` that are
// values.
#ifndef SHERD_CLIENT_CLI_JOB_ENVIRONMENT_H_
#define SHERD_CLIENT_CLI_JOB_ENVIRONMENT_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sherd::cli {

// Looks a variable up; null when it is not set.
using GetEnv = std::function<const char*(const char* name)>;

// A name for the job of `program`, process `pid`: "train_gpt-1234"; the same on all hosts if `pid` is
// negative: "train_gpt". Always valid.
std::string DefaultJobName(const std::string& program, int pid);

// Where `program` is: as it is if it has a '/', else in `path` (as PATH). NOT_FOUND, PERMISSION_DENIED in one
// line.
absl::StatusOr<std::string> FindProgram(const std::string& program, const std::string& path);

// The server's program: beside this one (in `self_dir`), in a build tree's server/, or in `path`.
absl::StatusOr<std::string> FindServerProgram(const std::string& self_dir, const std::string& path);

struct TrainerPlace {
  int rank = 0;
  int world_size = 1;
  int first_rank = 0;   // of this host
  int local_world = 1;  // ranks on this host
  std::string master_address;
  int master_port = 0;
  std::vector<std::string> endpoints;
  std::string job;
  int cores = 1;              // of this host, for all trainers
  std::string config;         // absolute path of the configuration file; empty: none
  std::string reduce_groups;  // as core/reduction_tree.h parses it; empty: all are one group
  int replicas = 0;           // further copies of the state on other hosts
};

// What is added to a trainer's environment. Threads of BLAS and OpenMP are counted out, because the results
// of a step depend on them, and malloc keeps the memory of large tensors, which it would give back and fault
// in again at each step; each of these only where `getenv` has nothing.
std::vector<std::pair<std::string, std::string>> TrainerEnvironment(const TrainerPlace& place,
                                                                    const GetEnv& getenv);

// RESOURCE_EXHAUSTED if the file system that `fd` is on, `root` for people, is too full to begin a job.
absl::Status CheckSpace(int fd, const std::string& root);

// A TCP port of the loopback interface that nobody listens on now.
absl::StatusOr<int> FreePort();

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_JOB_ENVIRONMENT_H_

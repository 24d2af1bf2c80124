// A job of several hosts as `sherd run` is told of it: by flags, by Slurm's or torchrun's variables.
//
//   HostFlags flags;  flags.rendezvous = "10.0.0.1:7000";       // with SLURM_NODEID=1 SLURM_NNODES=2
//   StatusOr<HostPlan> plan = PlanHosts(flags, ::getenv);       // host 1 of 2, joins at 10.0.0.1:7000
//   plan->ServerFlags(/*trainers=*/4)                           // what each sherdd is told
#ifndef SHERD_CLIENT_CLI_HOST_PLAN_H_
#define SHERD_CLIENT_CLI_HOST_PLAN_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/job_environment.h"
#include "runtime/host_place.h"

namespace sherd::cli {

struct HostFlags {
  std::string listen;      // HOST:PORT: this is the first host
  std::string join;        // HOST:PORT of the first host: this is another one
  std::string rendezvous;  // the one or the other, by the index
  int hosts = 0;           // 0: SLURM_NNODES, GROUP_WORLD_SIZE, else 2
  int index = -1;          // -1: SLURM_NODEID, GROUP_RANK, else 0 with `listen`, and 1 with `join` of two
  std::string advertise, interface;  // where other hosts reach this one; else by route
  std::string secret_file;
  bool any() const { return !listen.empty() || !join.empty() || !rendezvous.empty(); }
};

struct HostPlan {
  runtime::HostPlace place;
  std::string first_host;   // HOST:PORT of its control port
  std::string data_host;    // address of this host's data port
  bool loopback = false;    // both are: nobody else can reach them
  std::string secret_file;  // empty on the first host: to be made

  // Ids of this host's servers are this and a number: other hosts have others.
  std::string ServerPrefix() const;
  // Beside job, directory, id and socket. REQUIRES: secret_file is set.
  std::vector<std::string> ServerFlags(int trainers) const;
};

// Without any of them: one host. INVALID_ARGUMENT names the flag or variable, its value and the remedy; a
// secret's file that is not there or may be read by others: ReadSecretFile's errors.
absl::StatusOr<HostPlan> PlanHosts(const HostFlags& flags, const GetEnv& getenv);

// `groups` as --reduce-groups says them, for `trainers` ranks of one host; empty: none. INVALID_ARGUMENT if
// they are not so many, or if there are several hosts, whose ranks are groups already.
absl::Status CheckReduceGroups(const std::string& groups, int trainers, bool several_hosts);
// INVALID_ARGUMENT: replicas where there is one host.
absl::Status CheckReplicas(int replicas, bool several_hosts);

// Numbers the ranks of all hosts, those of host `index` being this one's: each host's are a group of the
// reduction tree.
void PlaceRanks(const std::vector<int>& ranks, int index, TrainerPlace* place);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_HOST_PLAN_H_

#include "client/cli/host_plan.h"

#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/host_map.h"
#include "core/reduction_tree.h"
#include "runtime/net_address.h"
#include "runtime/secret_file.h"

namespace sherd::cli {
namespace {

// The first of `names` that is set, as a number; `otherwise` if none is.
absl::StatusOr<int> FromVariables(const GetEnv& getenv, const std::vector<const char*>& names,
                                  int otherwise) {
  for (const char* name : names) {
    const char* text = getenv(name);
    if (text == nullptr) continue;
    int value = 0;
    if (absl::SimpleAtoi(text, &value)) return value;
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is \"", text, "\", not a number; give --host-index and --hosts"));
  }
  return otherwise;
}

absl::StatusOr<runtime::HostPlace> PlaceOf(const HostFlags& flags, const GetEnv& getenv) {
  runtime::HostPlace place;
  absl::StatusOr<int> count =
      flags.hosts > 0 ? flags.hosts : FromVariables(getenv, {"SLURM_NNODES", "GROUP_WORLD_SIZE"}, 2);
  if (!count.ok()) return count.status();
  absl::StatusOr<int> index = flags.index;
  if (*index < 0) index = FromVariables(getenv, {"SLURM_NODEID", "GROUP_RANK"}, -1);
  if (!index.ok()) return index.status();
  if (*index < 0 && !flags.listen.empty()) index = 0;
  if (*index < 0 && !flags.join.empty() && *count == 2) index = 1;
  if (*count < 2 || *count > kMaxHosts) {
    return absl::InvalidArgumentError(absl::StrCat("--hosts ", *count, " is not in 2..", kMaxHosts));
  }
  if (*index < 0 || *index >= *count) {
    return absl::InvalidArgumentError(absl::StrCat("which host of ", *count,
                                                   " this is, is not known: give --host-index 0..",
                                                   *count - 1, ", or set SLURM_NODEID or GROUP_RANK"));
  }
  if ((*index == 0 && !flags.join.empty()) || (*index > 0 && !flags.listen.empty())) {
    return absl::InvalidArgumentError(absl::StrCat("host ", *index, " cannot ",
                                                   *index == 0 ? "--join" : "--listen",
                                                   ": the first host, 0, listens and the others join it"));
  }
  place.index = *index;
  place.count = *count;
  return place;
}

}  // namespace

std::string HostPlan::ServerPrefix() const {
  return place.index == 0 ? "s" : absl::StrCat("h", place.index, "-s");
}

std::vector<std::string> HostPlan::ServerFlags(int trainers) const {
  std::vector<std::string> flags;
  if (!place.several()) return flags;
  const auto add = [&](const char* flag, std::string value) {
    flags.emplace_back(flag);
    flags.push_back(std::move(value));
  };
  add("--hosts", absl::StrCat(place.count));
  add("--host", absl::StrCat(place.index));
  add("--trainers", absl::StrCat(trainers));
  add("--data-address", data_host);
  add("--secret-file", secret_file);
  if (place.index > 0) add("--first-host", first_host);
  if (!loopback) flags.emplace_back("--allow-remote");
  return flags;
}

absl::StatusOr<HostPlan> PlanHosts(const HostFlags& flags, const GetEnv& getenv) {
  HostPlan plan;
  if (!flags.any()) return plan;
  if (!flags.listen.empty() + !flags.join.empty() + !flags.rendezvous.empty() != 1) {
    return absl::InvalidArgumentError("give one of --listen, --join and --rendezvous");
  }
  absl::StatusOr<runtime::HostPlace> place = PlaceOf(flags, getenv);
  if (!place.ok()) return place.status();
  plan.place = *place;
  plan.first_host = absl::StrCat(flags.listen, flags.join, flags.rendezvous);
  const absl::StatusOr<runtime::HostPort> at = runtime::ParseHostPort(plan.first_host);
  if (!at.ok()) return at.status();
  if (at->port == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(plan.first_host, " has port 0: choose one that all hosts are told"));
  }
  const absl::StatusOr<runtime::SocketAddress> first = runtime::ResolveOne(*at);
  if (!first.ok()) return first.status();
  runtime::AddressSources sources{flags.advertise, flags.interface, absl::nullopt};
  // The first host's own address is the one it listens at, unless that stands for all.
  if (plan.place.index > 0) sources.towards = *first;
  if (plan.place.index == 0 && sources.advertise.empty() && sources.interface.empty() && !first->IsAny())
    sources.advertise = first->host();
  const absl::StatusOr<runtime::SocketAddress> data = runtime::ChooseAddress(sources);
  if (!data.ok()) return data.status();
  plan.data_host = data->port() == 0 ? data->host() : data->ToString();
  plan.loopback = data->IsLoopback() && (plan.place.index > 0 || first->IsLoopback());
  plan.secret_file = flags.secret_file;
  if (plan.secret_file.empty()) {
    const char* variable = getenv("SHERD_SECRET_FILE");
    if (variable != nullptr) plan.secret_file = variable;
  }
  if (plan.secret_file.empty()) {
    if (plan.place.index == 0) return plan;
    return absl::InvalidArgumentError(
        "a host that joins needs the job's secret: copy the first host's file and give --secret-file or "
        "SHERD_SECRET_FILE");
  }
  const absl::StatusOr<runtime::Secret> secret = runtime::ReadSecretFile(plan.secret_file);
  if (!secret.ok()) return secret.status();
  return plan;
}

absl::Status CheckReduceGroups(const std::string& groups, int trainers, bool several_hosts) {
  if (groups.empty()) return absl::OkStatus();
  if (several_hosts) {
    return absl::InvalidArgumentError(
        "--reduce-groups is for one host: on several, each host's ranks are a group");
  }
  absl::StatusOr<ReductionTree> tree = ParseReductionTree(groups, DType::kFloat32);
  return tree.ok() ? Validate(*tree, trainers) : tree.status();
}

absl::Status CheckReplicas(int replicas, bool several_hosts) {
  if (replicas == 0 || several_hosts) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--replicas is for several hosts (--listen, --join): a copy on the same host is lost with it");
}

void PlaceRanks(const std::vector<int>& ranks, int index, TrainerPlace* place) {
  place->first_rank = std::accumulate(ranks.begin(), ranks.begin() + index, 0);
  place->world_size = std::accumulate(ranks.begin(), ranks.end(), 0);
  place->reduce_groups = absl::StrJoin(ranks, ",");
}

}  // namespace sherd::cli

#include "server/host_limits.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/optimizer.h"

namespace sherd::server {

absl::Status CheckForSeveralHosts(const runtime::HostPlace& place, const JobSpec& spec) {
  if (!place.several()) return absl::OkStatus();
  const kernels::OptimizerInfo& optimizer = kernels::Info(spec.optimizer);
  if (optimizer.directions) {
    return absl::FailedPreconditionError(absl::StrCat("optimizer ", Name(spec.optimizer),
                                                      " needs whole matrices, which a job of ", place.count,
                                                      " hosts divides: use another one, or one host"));
  }
  if (spec.virtual_ranks > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("virtual ranks are for one host; this job has ", place.count, ": use none"));
  }
  if (spec.world_size < place.count || spec.reduction.size() != place.count) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a job of ", place.count, " hosts adds up its gradients host by host, but this trainer asks for ",
        Describe(spec.reduction), ": start every trainer with `sherd run`"));
  }
  if (ShardHosts(spec, place.count) == 0) {
    return absl::FailedPreconditionError(absl::StrCat("mics_shard_size is ", spec.shard_ranks,
                                                      ", but the ranks of this job's hosts, ",
                                                      absl::StrJoin(spec.reduction.groups, ", "),
                                                      ", do not make up groups of so many on equally many "
                                                      "hosts: take the ranks of one host, or of several"));
  }
  return absl::OkStatus();
}

}  // namespace sherd::server

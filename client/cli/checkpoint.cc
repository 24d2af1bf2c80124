#include "client/cli/checkpoint.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/json_text.h"
#include "client/cli/text.h"
#include "nlohmann/json.hpp"
#include "proto/convert.h"

namespace sherd::cli {
namespace {

using Json = nlohmann::ordered_json;
using Names = google::protobuf::RepeatedPtrField<std::string>;

std::vector<std::string> List(const Names& names) { return {names.begin(), names.end()}; }

}  // namespace

absl::Status SaveCommand(Context& context, const SaveOptions& options) {
  // A change names its job, so that it reaches no other that has taken the address.
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  const absl::StatusOr<v1::SaveRequest> request = ToSaveRequest(cluster->job(), options, 0);
  if (!request.ok()) return request.status();
  std::optional<v1::SaveProgress::Cut> cut;
  std::optional<v1::SaveProgress::Result> result;
  absl::Status status = context.client.RetryUnavailable(context.deadline, [&] {
    return context.client.Save(*request, context.deadline, [&](v1::SaveProgress& message) {
      if (message.has_cut()) cut = message.cut();
      if (message.has_result()) result = message.result();
      if (cut && context.progress.Due()) {
        context.progress.Show(
            absl::StrFormat("save step %d: %3.0f%%  %s of %s", cut->step(),
                            100.0 * message.written_bytes() / std::max<int64_t>(1, cut->bytes()),
                            HumanBytes(message.written_bytes()), HumanBytes(cut->bytes())));
      }
      return absl::OkStatus();
    });
  });
  context.progress.Clear();
  if (!status.ok()) return status;
  if (!result)
    return absl::DataLossError("the save ended without a result; look at the directory's `latest`");
  const double seconds = absl::ToDoubleSeconds(FromProto(result->duration()));
  if (context.json) {
    context.out << Dump({{"path", result->path()},
                         {"tag", result->tag()},
                         {"step", result->step()},
                         {"bytes", result->bytes()},
                         {"files", result->files()},
                         {"seconds", seconds},
                         {"removed", List(result->removed())}});
    return absl::OkStatus();
  }
  context.out << absl::StrFormat("%s: step %d, %s in %d files, %.2f s (%s/s)", result->path(), result->step(),
                                 HumanBytes(result->bytes()), result->files(), seconds,
                                 HumanBytes(result->bytes() / std::max(seconds, 1e-3)));
  if (result->removed_size() > 0) context.out << "; removed " << absl::StrJoin(result->removed(), ", ");
  context.out << "\n";
  return absl::OkStatus();
}

absl::Status RestoreCommand(Context& context, const RestoreCommandOptions& options) {
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  v1::RestoreRequest request;
  request.set_job(cluster->job());
  request.set_token(rpc::NewToken());
  v1::RestoreFrom* from = request.mutable_from();
  from->set_directory(AbsolutePath(options.directory));
  from->set_tag(options.tag);
  from->set_weights_only(options.weights_only);
  from->set_partial(options.partial);
  const absl::StatusOr<v1::RestoreResponse> response = context.client.Restore(request, context.deadline);
  if (!response.ok()) return response.status();
  const v1::RestoreReport& r = response->restored();
  const double seconds = absl::ToDoubleSeconds(FromProto(r.duration()));
  if (context.json) {
    context.out << Dump({{"path", r.path()},
                         {"saved_step", r.step()},
                         {"step", response->step()},
                         {"matched", List(r.matched())},
                         {"missing", List(r.missing())},
                         {"extra", List(r.extra())},
                         {"mismatched", List(r.mismatched())},
                         {"bytes", r.bytes()},
                         {"seconds", seconds}});
    return absl::OkStatus();
  }
  const std::string which = r.servers() > 0 ? absl::StrCat("step ", r.step()) : "weights";
  context.out << absl::StrFormat("%s (%s): %d tensors, %s stored after the job's step %d in %.2f s\n",
                                 r.path(), which, r.matched_size(), HumanBytes(r.bytes()), response->step(),
                                 seconds);
  const auto list = [&](const char* what, const Names& names) {
    if (!names.empty()) context.out << what << ": " << absl::StrJoin(names, ", ") << "\n";
  };
  list("not in the checkpoint, unchanged", r.missing());
  list("not in this job", r.extra());
  list("of another shape, unchanged", r.mismatched());
  return absl::OkStatus();
}

}  // namespace sherd::cli

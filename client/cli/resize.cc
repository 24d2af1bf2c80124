#include "client/cli/resize.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/text.h"
#include "nlohmann/json.hpp"

namespace sherd::cli {

absl::Status Resize(Context& context, int servers, int trainers, uint64_t from_step, bool give_up_step) {
  const std::string what = trainers > 0 ? absl::StrCat(trainers, trainers == 1 ? " trainer" : " trainers")
                                        : absl::StrCat(servers, servers == 1 ? " server" : " servers");
  // A change names its job, so that it reaches no other that has taken the address.
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  v1::ResizeRequest request;
  request.set_job(cluster->job());
  request.set_token(rpc::NewToken());
  request.set_servers(servers);
  request.set_trainers(trainers);
  request.set_from_step(from_step);
  request.set_give_up_step(give_up_step);
  std::optional<v1::ResizeProgress::Result> result;
  absl::Status status = context.client.RetryUnavailable(context.deadline, [&] {
    return context.client.Resize(request, context.deadline, [&](v1::ResizeProgress& message) {
      if (message.has_result()) result = message.result();
      if (!message.progress().empty()) {
        context.progress.Show(absl::StrCat("resize to ", what, ": waits for ", message.progress()));
      }
      return absl::OkStatus();
    });
  });
  context.progress.Clear();
  if (!status.ok()) return status;
  if (!result) return absl::DataLossError("the resize ended without a result; look at `sherd status`");
  const auto seconds = [](const google::protobuf::Duration& d) { return d.seconds() + d.nanos() * 1e-9; };
  if (context.json) {
    context.out << nlohmann::ordered_json(
                       {{trainers > 0 ? "trainers" : "servers", trainers > 0 ? trainers : servers},
                        {"epoch", result->epoch()},
                        {"step", result->step()},
                        {"pause_seconds", seconds(result->pause())},
                        {"moved_bytes", result->moved_bytes()},
                        {"least_bytes", result->least_bytes()},
                        {"changed_elements", result->changed_elements()},
                        {"seconds", seconds(result->duration())}})
                       .dump(2)
                << "\n";
  } else {
    context.out << absl::StrFormat(
        "%s from step %d on (epoch %d): pause %.1f ms, moved %s (least possible %s), %d elements "
        "changed owner, "
        "%.2f s\n",
        what, result->step() + 1, result->epoch(), seconds(result->pause()) * 1e3,
        HumanBytes(result->moved_bytes()), HumanBytes(result->least_bytes()), result->changed_elements(),
        seconds(result->duration()));
  }
  return absl::OkStatus();
}

}  // namespace sherd::cli

#include "client/cli/resize.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/text.h"
#include "client/rpc/job_client.h"
#include "nlohmann/json.hpp"
#include "runtime/clock.h"

namespace sherd::cli {
namespace {

using Result = v1::ResizeProgress::Result;
using Receive = std::function<absl::Status(v1::ResizeProgress&)>;

constexpr absl::Duration kAskAgain = absl::Milliseconds(200);

double Seconds(const google::protobuf::Duration& d) { return d.seconds() + d.nanos() * 1e-9; }

// Makes `call` until it is done, and shows how far it is. `what` as in "resize to 3".
absl::StatusOr<Result> Carry(Context& context, const std::string& what,
                             const std::function<absl::Status(Receive)>& call) {
  std::optional<Result> result;
  const absl::Status status = context.client.RetryUnavailable(context.deadline, [&] {
    return call([&](v1::ResizeProgress& message) {
      if (message.has_result()) result = message.result();
      if (!message.progress().empty())
        context.progress.Show(absl::StrCat(what, ": waits for ", message.progress()));
      return absl::OkStatus();
    });
  });
  context.progress.Clear();
  if (!status.ok()) return status;
  if (!result) return absl::DataLossError("it ended without a result; look at `sherd status`");
  return *std::move(result);
}

// The job, once it has a coordinator that answers: only that one can change it. `what` as above.
absl::StatusOr<v1::Cluster> JobToChange(Context& context, const std::string& what) {
  for (;;) {
    absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
    if (!cluster.ok() || !cluster->coordinator_id().empty()) return cluster;
    if (runtime::SteadyNow() + kAskAgain >= context.deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the ", what, " was not begun in time: ", cluster->waiting_for()));
    }
    context.progress.Show(absl::StrCat(what, ": ", cluster->waiting_for()));
    absl::SleepFor(kAskAgain);
  }
}

nlohmann::ordered_json Cost(const Result& r) {
  return {{"epoch", r.epoch()},
          {"step", r.step()},
          {"pause_seconds", Seconds(r.pause())},
          {"moved_bytes", r.moved_bytes()},
          {"least_bytes", r.least_bytes()},
          {"changed_elements", r.changed_elements()},
          {"seconds", Seconds(r.duration())}};
}

// `json` begins the document, `text` the line.
void Write(Context& context, nlohmann::ordered_json json, const std::string& text, const Result& r) {
  if (context.json) {
    json.update(Cost(r));
    context.out << json.dump(2) << "\n";
    return;
  }
  context.out << absl::StrFormat(
      "%s from step %d on (epoch %d): pause %.1f ms, moved %s (least possible %s), %d elements changed "
      "owner, "
      "%.2f s\n",
      text, r.step() + 1, r.epoch(), Seconds(r.pause()) * 1e3, HumanBytes(r.moved_bytes()),
      HumanBytes(r.least_bytes()), r.changed_elements(), Seconds(r.duration()));
}

// The rank that a person means by `member`, if it is a trainer; else -1. Ranks have no holes, so only the
// last can go.
absl::StatusOr<int> RankMeant(const v1::Cluster& cluster, const std::string& member) {
  for (const v1::Member& m : cluster.members()) {
    if (m.kind() != v1::Member::KIND_TRAINER || m.id() != member) continue;
    const int last = cluster.world_size() - 1;
    if (m.rank() == last) return last;
    return absl::FailedPreconditionError(
        absl::StrCat(member, " cannot go: ranks have no holes, so the last goes first: `sherd drain rank-",
                     last, "`. If it is this process that is to go, end it: another one takes its place"));
  }
  return -1;
}

std::string Trainers(const v1::Cluster& cluster) {
  return cluster.world_size() == 0 ? ""
                                   : absl::StrCat(", its last trainer is rank-", cluster.world_size() - 1);
}

// The name of the server that a person means by `member`.
absl::StatusOr<std::string> ServerMeant(const v1::Cluster& cluster, const std::string& member) {
  std::vector<std::string> names;
  int slot = -1;
  const bool number = absl::SimpleAtoi(member, &slot);
  for (const v1::Member& m : cluster.members()) {
    if (m.kind() != v1::Member::KIND_SERVER) continue;
    if (m.id() == member) return member;
    names.push_back(m.id());
  }
  for (const v1::Member& m : cluster.members()) {
    const auto& slots = m.slots();
    const bool holds = std::find(slots.begin(), slots.end(), slot) != slots.end();
    if (number && m.kind() == v1::Member::KIND_SERVER && holds) return m.id();
  }
  return absl::NotFoundError(absl::StrCat("job ", cluster.job(), " has no member '", member,
                                          "'; its servers are ", absl::StrJoin(names, ", "),
                                          Trainers(cluster)));
}

struct Wanted {
  int servers, trainers;  // one of them is 0
  uint64_t from_step;
  bool give_up_step;
};

std::string Show(const Wanted& w) {
  return w.trainers > 0 ? absl::StrCat(w.trainers, w.trainers == 1 ? " trainer" : " trainers")
                        : absl::StrCat(w.servers, w.servers == 1 ? " server" : " servers");
}

// `json` and `text` as of Write.
absl::Status ResizeJob(Context& context, const v1::Cluster& cluster, const Wanted& wanted,
                       nlohmann::ordered_json json, const std::string& text) {
  v1::ResizeRequest request;
  // A change names its job, so that it reaches no other that has taken the address.
  request.set_job(cluster.job());
  request.set_token(rpc::NewToken());
  request.set_servers(wanted.servers);
  request.set_trainers(wanted.trainers);
  request.set_from_step(wanted.from_step);
  request.set_give_up_step(wanted.give_up_step);
  const absl::StatusOr<Result> result = Carry(
      context, absl::StrCat("resize to ", Show(wanted)),
      [&](const Receive& receive) { return context.client.Resize(request, context.deadline, receive); });
  if (!result.ok()) return result.status();
  Write(context, std::move(json), text, *result);
  return absl::OkStatus();
}

}  // namespace

absl::Status Resize(Context& context, int servers, int trainers, uint64_t from_step, bool give_up_step) {
  const Wanted wanted{servers, trainers, from_step, give_up_step};
  absl::StatusOr<v1::Cluster> cluster = JobToChange(context, absl::StrCat("resize to ", Show(wanted)));
  if (!cluster.ok()) return cluster.status();
  return ResizeJob(context, *cluster, wanted,
                   {{trainers > 0 ? "trainers" : "servers", trainers > 0 ? trainers : servers}},
                   Show(wanted));
}

absl::Status DrainMember(Context& context, const std::string& member) {
  absl::StatusOr<v1::Cluster> cluster = JobToChange(context, absl::StrCat("drain of ", member));
  if (!cluster.ok()) return cluster.status();
  const absl::StatusOr<int> rank = RankMeant(*cluster, member);
  if (!rank.ok()) return rank.status();
  if (*rank == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(member, " is the only trainer: the job would wait for another one"));
  }
  if (*rank > 0)
    return ResizeJob(context, *cluster, {0, *rank, 0, false}, {{"drained", member}},
                     absl::StrCat("without ", member));
  const absl::StatusOr<std::string> id = ServerMeant(*cluster, member);
  if (!id.ok()) return id.status();
  v1::DrainRequest request;
  request.set_job(cluster->job());
  request.set_token(rpc::NewToken());
  request.set_id(*id);
  const absl::StatusOr<Result> result =
      Carry(context, absl::StrCat("drain of ", *id),
            [&](const Receive& receive) { return context.client.Drain(request, context.deadline, receive); });
  if (!result.ok()) return result.status();
  Write(context, {{"drained", *id}}, absl::StrCat("without server ", *id), *result);
  return absl::OkStatus();
}

}  // namespace sherd::cli

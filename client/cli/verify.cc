#include "client/cli/verify.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/json_text.h"
#include "client/cli/text.h"
#include "nlohmann/json.hpp"
#include "proto/copies_text.h"

namespace sherd::cli {
namespace {

using Json = nlohmann::ordered_json;
using Difference = v1::CompareCopiesResponse::Difference;

std::string AsJson(const v1::CompareCopiesResponse& r) {
  Json differences = Json::array();
  for (const Difference& d : r.differences()) {
    differences.push_back({{"tensor", d.tensor().name()},
                           {"plane", d.tensor().plane()},
                           {"begin", d.begin()},
                           {"end", d.end()},
                           {"hosts", std::vector<int>(d.hosts().begin(), d.hosts().end())},
                           {"apart", std::vector<int>(d.apart().begin(), d.apart().end())}});
  }
  return Dump({{"step", r.step()},
               {"copies", r.copies()},
               {"bytes", r.bytes()},
               {"differences", differences},
               {"more", r.more()}});
}

}  // namespace

absl::Status VerifyCommand(Context& context) {
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  v1::CompareCopiesRequest request;
  request.set_job(cluster->job());
  request.set_token(rpc::NewToken());
  const absl::StatusOr<v1::CompareCopiesResponse> r = context.client.CompareCopies(request, context.deadline);
  if (!r.ok()) return r.status();
  if (context.json) {
    context.out << AsJson(*r);
  } else if (r->differences().empty()) {
    context.out << "step " << r->step() << ": " << r->copies() << " copies of the state, "
                << HumanBytes(r->bytes()) << " each, are the same bits\n";
  }
  if (r->differences().empty()) return absl::OkStatus();
  if (!context.json) {
    for (const Difference& d : r->differences()) context.out << Describe(d) << "\n";
  }
  return absl::DataLossError(absl::StrCat(
      "the copies of the state after step ", r->step(), " differ in ", r->more() ? "more than " : "",
      r->differences_size(), r->differences_size() == 1 ? " place" : " places",
      ": replace the host whose memory is wrong by a fresh one, which copies the state of another, or "
      "`sherd restore` a checkpoint into all of them"));
}

}  // namespace sherd::cli

#include "server/joined_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"

namespace sherd::server {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(5);

absl::Status OnFirstHost(absl::string_view what, absl::string_view key) {
  return absl::UnimplementedError(
      absl::StrCat(what, " ", key, ": the job's store is on its first host, and only its servers change it"));
}

// Never leads: the coordinator lives on the first host.
class Follower final : public runtime::MetaStore::Leadership {
 public:
  explicit Follower(runtime::MetaStore* store) : store_(store) {}
  bool held() const override { return false; }
  runtime::MetaStore& store() override { return *store_; }

 private:
  runtime::MetaStore* const store_;  // refuses every change
};

}  // namespace

absl::StatusOr<std::string> JoinedStore::Get(absl::string_view key) {
  if (key != "job" && key != "restore") return OnFirstHost("get", key);
  grpc::ClientContext context;
  peers_->Prepare(&context, runtime::SteadyNow() + kPatience);
  v1::GetJobRequest request;
  request.set_job(job_);
  v1::GetJobResponse response;
  const absl::Status got =
      FromGrpc(v1::ClusterService::NewStub(peers_->To(first_host_))->GetJob(&context, request, &response));
  if (absl::IsFailedPrecondition(got)) return absl::NotFoundError(got.message());
  if (!got.ok()) return got;
  if (key == "job") return response.record();
  if (response.restore().empty()) return absl::NotFoundError("the job begins with rank 0's values");
  return response.restore();
}

absl::StatusOr<std::unique_ptr<runtime::MetaStore::Leadership>> JoinedStore::Elect(absl::string_view,
                                                                                   absl::string_view,
                                                                                   std::function<void()>,
                                                                                   std::function<void()>) {
  return std::unique_ptr<Leadership>(std::make_unique<Follower>(this));
}

absl::StatusOr<std::string> JoinedStore::Leader(absl::string_view) {
  return absl::StrCat("first-host ", first_host_);
}

absl::Status JoinedStore::CreateIfAbsent(absl::string_view key, absl::string_view) {
  return OnFirstHost("create", key);
}
absl::Status JoinedStore::Put(absl::string_view key, absl::string_view) { return OnFirstHost("put", key); }
absl::Status JoinedStore::Delete(absl::string_view key) { return OnFirstHost("delete", key); }
absl::StatusOr<std::vector<std::string>> JoinedStore::List(absl::string_view prefix) {
  return OnFirstHost("list", prefix);
}
absl::StatusOr<std::unique_ptr<runtime::MetaStore::WatchHandle>> JoinedStore::Watch(absl::string_view prefix,
                                                                                    WatchCallback) {
  return OnFirstHost("watch", prefix);
}

}  // namespace sherd::server

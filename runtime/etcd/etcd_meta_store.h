// MetaStore in etcd: for servers of several hosts, and for jobs whose records must outlive a host.
//
//   absl::StatusOr<EtcdPlace> place = ParseEtcdPlace("etcd://10.0.0.1:2379,10.0.0.2:2379/prod");
//   absl::StatusOr<std::unique_ptr<EtcdMetaStore>> store =
//       EtcdMetaStore::Open({place->endpoints, "prod/gpt"});
//
// All of it stands under one prefix: the keys, candidates of elections (.election/NAME/LEASE), pieces of
// large values (.piece/...; etcd_values.h). Calls go from server to server until one answers, for `patience`;
// then UNAVAILABLE, and nothing is known of a change. A leader whose lease could not be renewed for `ttl` has
// lost its leadership, and stands again.
//
// A key that was created, and deleted by another while the answer to its creation was lost, may be created
// once more by the same CreateIfAbsent.
#ifndef SHERD_RUNTIME_ETCD_ETCD_META_STORE_H_
#define SHERD_RUNTIME_ETCD_ETCD_META_STORE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/etcd/etcd_client.h"
#include "runtime/etcd/etcd_values.h"
#include "runtime/meta_store.h"

namespace sherd::runtime {

struct EtcdPlace {
  std::vector<std::string> endpoints;  // HOST:PORT
  std::string prefix;                  // of keys' parts, without '/' at its ends; may be empty
};
// INVALID_ARGUMENT unless `text` is etcd://HOST:PORT[,HOST:PORT...][/PREFIX].
absl::StatusOr<EtcdPlace> ParseEtcdPlace(absl::string_view text);

class EtcdMetaStore final : public MetaStore {
 public:
  struct Options {
    std::vector<std::string> endpoints;
    std::string prefix;  // a key (ValidateMetaKey)
    absl::Duration ttl = absl::Seconds(5);
    absl::Duration patience = absl::Seconds(10);
  };

  // UNAVAILABLE: no etcd answers there. FAILED_PRECONDITION: one older than 3.4. INVALID_ARGUMENT.
  static absl::StatusOr<std::unique_ptr<EtcdMetaStore>> Open(Options options);

  absl::StatusOr<std::string> Get(absl::string_view key) override;
  absl::Status CreateIfAbsent(absl::string_view key, absl::string_view value) override;
  absl::Status Put(absl::string_view key, absl::string_view value) override;
  absl::Status Delete(absl::string_view key) override;
  absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix) override;
  absl::StatusOr<std::unique_ptr<WatchHandle>> Watch(absl::string_view prefix,
                                                     WatchCallback callback) override;
  absl::StatusOr<std::unique_ptr<Leadership>> Elect(absl::string_view name, absl::string_view identity,
                                                    std::function<void()> gained,
                                                    std::function<void()> lost) override;
  absl::StatusOr<std::string> Leader(absl::string_view name) override;
  std::string Trouble() const override { return client_->Trouble(); }

 private:
  // The term under which changes are made; nullopt when it has ended.
  using Term = std::function<std::optional<etcdserverpb::Compare>()>;

  EtcdMetaStore(std::shared_ptr<EtcdClient> client, absl::Duration ttl, std::string root, Term term);
  absl::Status CheckVersion();
  // `change` with the guard that is in force.
  absl::Status Guarded(absl::string_view key,
                       const std::function<absl::Status(const EtcdValues::Guard&)>& change);
  std::string ElectionPrefix(absl::string_view name) const;

  const std::shared_ptr<EtcdClient> client_;
  const absl::Duration ttl_;
  EtcdValues values_;
  const Term term_;  // null: of nobody in particular
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_META_STORE_H_

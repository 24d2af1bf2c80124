#include "runtime/etcd/etcd_meta_store.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/clock.h"
#include "runtime/etcd/etcd_election.h"
#include "runtime/etcd/etcd_watch.h"

namespace sherd::runtime {
namespace {

constexpr char kScheme[] = "etcd://";
// Since when etcd gives a sign of life in a watch.
constexpr int kLeastMajor = 3, kLeastMinor = 4;
// Who only wants to know who leads asks again rather than wait long.
constexpr absl::Duration kLeaderPatience = absl::Seconds(2);
constexpr size_t kMostEndpoints = 16;

class Watching final : public MetaStore::WatchHandle {
 public:
  explicit Watching(std::unique_ptr<EtcdWatch> watch) : watch_(std::move(watch)) {}

 private:
  const std::unique_ptr<EtcdWatch> watch_;
};

class EtcdLeadership final : public MetaStore::Leadership {
 public:
  EtcdLeadership(std::shared_ptr<EtcdCandidacy> candidacy, std::unique_ptr<MetaStore> store)
      : candidacy_(std::move(candidacy)), store_(std::move(store)) {}
  bool held() const override { return candidacy_->held(); }
  MetaStore& store() override { return *store_; }

 private:
  const std::shared_ptr<EtcdCandidacy> candidacy_;
  const std::unique_ptr<MetaStore> store_;
};

bool IsEndpoint(absl::string_view text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  return colon != absl::string_view::npos && colon > 0 && absl::SimpleAtoi(text.substr(colon + 1), &port) &&
         port > 0 && port < 65536 && text.find_first_of(" \t@?#%") == absl::string_view::npos;
}

}  // namespace

absl::StatusOr<EtcdPlace> ParseEtcdPlace(absl::string_view text) {
  const absl::Status form = absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not etcd://HOST:PORT[,HOST:PORT...][/PREFIX] with ", kMostEndpoints,
                   " addresses at most, the prefix of letters, digits, '.', '_', '-' and '/'"));
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, kScheme)) return form;
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(rest, absl::MaxSplits('/', 1));
  EtcdPlace place;
  for (absl::string_view endpoint : absl::StrSplit(parts.first, ',')) {
    if (!IsEndpoint(endpoint)) return form;
    place.endpoints.emplace_back(endpoint);
  }
  place.prefix = std::string(absl::StripSuffix(parts.second, "/"));
  if (!place.prefix.empty() && !ValidateMetaKey(place.prefix).ok()) return form;
  if (place.endpoints.size() > kMostEndpoints) return form;
  return place;
}

absl::StatusOr<std::unique_ptr<EtcdMetaStore>> EtcdMetaStore::Open(Options options) {
  if (options.endpoints.empty()) return absl::InvalidArgumentError("etcd needs the address of a server");
  if (absl::Status valid = ValidateMetaKey(options.prefix); !valid.ok()) return valid;
  EtcdClient::Options client;
  client.endpoints = options.endpoints;
  client.patience = options.patience;
  std::unique_ptr<EtcdMetaStore> store(new EtcdMetaStore(std::make_shared<EtcdClient>(std::move(client)),
                                                         options.ttl, absl::StrCat("/", options.prefix, "/"),
                                                         nullptr));
  if (absl::Status known = store->CheckVersion(); !known.ok()) return known;
  return store;
}

EtcdMetaStore::EtcdMetaStore(std::shared_ptr<EtcdClient> client, absl::Duration ttl, std::string root,
                             Term term)
    : client_(std::move(client)), ttl_(ttl), values_(client_, std::move(root)), term_(std::move(term)) {}

absl::Status EtcdMetaStore::CheckVersion() {
  etcdserverpb::StatusResponse status;
  const absl::Status s =
      client_->Call("open the store", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
        return server.maintenance->Status(context, {}, &status);
      });
  if (!s.ok()) return s;
  const std::vector<std::string> parts = absl::StrSplit(status.version(), '.');
  int major = 0, minor = 0;
  const bool known =
      parts.size() >= 2 && absl::SimpleAtoi(parts[0], &major) && absl::SimpleAtoi(parts[1], &minor);
  if (known && std::make_pair(major, minor) >= std::make_pair(kLeastMajor, kLeastMinor))
    return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("etcd at ", client_->addresses(), " is of version '",
                                                    status.version(), "'; ", kLeastMajor, ".", kLeastMinor,
                                                    " or newer is needed"));
}

absl::StatusOr<std::string> EtcdMetaStore::Get(absl::string_view key) {
  if (absl::Status valid = ValidateMetaKey(key); !valid.ok()) return valid;
  return values_.Get(key);
}

absl::Status EtcdMetaStore::Guarded(absl::string_view key,
                                    const std::function<absl::Status(const EtcdValues::Guard&)>& change) {
  if (absl::Status valid = ValidateMetaKey(key); !valid.ok()) return valid;
  if (term_ == nullptr) return change(std::nullopt);
  const EtcdValues::Guard guard = term_();
  if (!guard.has_value()) return NotLeading(key);
  return change(guard);
}

absl::Status EtcdMetaStore::CreateIfAbsent(absl::string_view key, absl::string_view value) {
  if (absl::Status valid = ValidateMetaValue(key, value); !valid.ok()) return valid;
  return Guarded(key, [&](const EtcdValues::Guard& guard) { return values_.Create(key, value, guard); });
}

absl::Status EtcdMetaStore::Put(absl::string_view key, absl::string_view value) {
  if (absl::Status valid = ValidateMetaValue(key, value); !valid.ok()) return valid;
  return Guarded(key, [&](const EtcdValues::Guard& guard) { return values_.Put(key, value, guard); });
}

absl::Status EtcdMetaStore::Delete(absl::string_view key) {
  return Guarded(key, [&](const EtcdValues::Guard& guard) { return values_.Delete(key, guard); });
}

absl::StatusOr<std::vector<std::string>> EtcdMetaStore::List(absl::string_view prefix) {
  return values_.List(prefix);
}

absl::StatusOr<std::unique_ptr<MetaStore::WatchHandle>> EtcdMetaStore::Watch(absl::string_view prefix,
                                                                             WatchCallback callback) {
  const std::string from = absl::StrCat(values_.root(), prefix);
  absl::StatusOr<std::unique_ptr<EtcdWatch>> watch = EtcdWatch::Start(
      client_, from, EtcdPrefixEnd(from), SteadyNow() + client_->options().patience,
      [size = values_.root().size(), callback = std::move(callback)](const std::string& full) {
        const std::string key = full.substr(size);
        if (ValidateMetaKey(key).ok()) callback(key);
      });
  if (!watch.ok()) return watch.status();
  return std::make_unique<Watching>(*std::move(watch));
}

std::string EtcdMetaStore::ElectionPrefix(absl::string_view name) const {
  return absl::StrCat(values_.root(), ".election/", name, "/");
}

absl::StatusOr<std::unique_ptr<MetaStore::Leadership>> EtcdMetaStore::Elect(absl::string_view name,
                                                                            absl::string_view identity,
                                                                            std::function<void()> gained,
                                                                            std::function<void()> lost) {
  if (absl::Status valid = ValidateCandidate(name, identity); !valid.ok()) return valid;
  auto candidacy = std::make_shared<EtcdCandidacy>(client_, ElectionPrefix(name), std::string(identity), ttl_,
                                                   std::move(gained), std::move(lost));
  std::unique_ptr<MetaStore> mine(
      new EtcdMetaStore(client_, ttl_, values_.root(), [c = candidacy.get()] { return c->term(); }));
  return std::make_unique<EtcdLeadership>(std::move(candidacy), std::move(mine));
}

absl::StatusOr<std::string> EtcdMetaStore::Leader(absl::string_view name) {
  if (absl::Status valid = ValidateElectionName(name); !valid.ok()) return valid;
  return EtcdLeader(*client_, ElectionPrefix(name),
                    SteadyNow() + std::min(kLeaderPatience, client_->options().patience));
}

}  // namespace sherd::runtime

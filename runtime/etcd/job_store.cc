#include "runtime/etcd/job_store.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/file_meta_store.h"
#include "runtime/mutex.h"

namespace sherd::runtime {
namespace {

constexpr char kOwnerKey[] = "owner";
constexpr char kClaim[] = "claim";
constexpr char kDefaultPrefix[] = "sherd";
// For a competitor, of the same job as a rule, to have made it its own.
constexpr absl::Duration kClaimPatience = absl::Seconds(20);

// "UUID HOST PATH"
struct Owner {
  std::string uuid, host, path;
};

std::string HostName() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

absl::StatusOr<Owner> ReadOwner(MetaStore& store) {
  absl::StatusOr<std::string> text = store.Get(kOwnerKey);
  if (!text.ok()) return text.status();
  const std::vector<std::string> parts = absl::StrSplit(*text, absl::MaxSplits(' ', 2));
  if (parts.size() != 3) return absl::DataLossError(absl::StrCat("the store's owner is '", *text, "'"));
  return Owner{parts[0], parts[1], parts[2]};
}

// Everything, the owner last: whoever is interrupted is still known.
absl::Status RemoveAll(MetaStore& store) {
  const absl::StatusOr<std::vector<std::string>> keys = store.List("");
  if (!keys.ok()) return keys.status();
  for (const std::string& key : *keys) {
    if (key == kOwnerKey) continue;
    if (absl::Status s = store.Delete(key); !s.ok() && !absl::IsNotFound(s)) return s;
  }
  const absl::Status s = store.Delete(kOwnerKey);
  return absl::IsNotFound(s) ? absl::OkStatus() : s;
}

// REQUIRES: `store` is changed by nobody else meanwhile.
absl::Status TakeOver(MetaStore& store, absl::string_view name, const JobDir& dir) {
  const absl::StatusOr<Owner> owner = ReadOwner(store);
  if (owner.ok() && owner->uuid == dir.uuid()) return absl::OkStatus();
  if (!owner.ok() && !absl::IsNotFound(owner.status())) return owner.status();
  if (owner.ok()) {
    const bool gone = owner->host == HostName() && ::access(owner->path.c_str(), F_OK) != 0;
    if (!gone) {
      return absl::FailedPreconditionError(absl::StrCat(name, " is used by another run of job ", dir.job(),
                                                        ", in ", owner->path, " on host ", owner->host,
                                                        ": choose another job name or prefix; if that run "
                                                        "has ended, `sherd gc` on its host ends its claim"));
    }
    if (absl::Status s = RemoveAll(store); !s.ok()) return s;
  } else {
    const absl::StatusOr<std::vector<std::string>> keys = store.List("");
    if (!keys.ok()) return keys.status();
    if (!keys->empty()) {
      return absl::FailedPreconditionError(absl::StrCat(name, " holds ", keys->size(),
                                                        " keys that are no job's (", keys->front(),
                                                        "): choose another prefix"));
    }
  }
  return store.Put(kOwnerKey, absl::StrCat(dir.uuid(), " ", HostName(), " ", dir.path()));
}

absl::Status Claim(MetaStore& store, absl::string_view name, const JobDir& dir) {
  const absl::StatusOr<Owner> owner = ReadOwner(store);
  if (owner.ok() && owner->uuid == dir.uuid()) return absl::OkStatus();
  if (!owner.ok() && !absl::IsNotFound(owner.status())) return owner.status();
  // One at a time: what one takes to be left over may be another's beginning.
  Notification mine;
  const absl::StatusOr<std::unique_ptr<MetaStore::Leadership>> turn = store.Elect(
      kClaim, dir.uuid(),
      [&mine] {
        if (!mine.HasBeenNotified()) mine.Notify();
      },
      [] {});
  if (!turn.ok()) return turn.status();
  if (!mine.WaitFor(kClaimPatience))
    return absl::UnavailableError(absl::StrCat("others are still opening ", name));
  return TakeOver((*turn)->store(), name, dir);
}

}  // namespace

absl::StatusOr<StorePlace> ParseStorePlace(absl::string_view text) {
  StorePlace place;
  if (text.empty()) return place;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "file:")) {
    place.kind = StorePlace::Kind::kFiles;
    place.directory = std::string(rest);
    if (rest.empty()) return absl::InvalidArgumentError("--store file: names no directory");
    return place;
  }
  if (!absl::StartsWith(text, "etcd:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--store ", text, ": use file:DIR or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]"));
  }
  absl::StatusOr<EtcdPlace> etcd = ParseEtcdPlace(text);
  if (!etcd.ok()) return absl::InvalidArgumentError(absl::StrCat("--store ", etcd.status().message()));
  place.kind = StorePlace::Kind::kEtcd;
  place.etcd = *std::move(etcd);
  return place;
}

absl::StatusOr<std::unique_ptr<MetaStore>> OpenLocalStore(const JobDir& dir) {
  absl::StatusOr<std::unique_ptr<FileMetaStore>> store = FileMetaStore::Open(dir.path() + "/store");
  if (!store.ok()) return store.status();
  return std::unique_ptr<MetaStore>(*std::move(store));
}

absl::StatusOr<std::unique_ptr<MetaStore>> OpenJobStore(const StorePlace& place, const JobDir& dir) {
  std::unique_ptr<MetaStore> opened;
  std::string name;
  if (place.kind == StorePlace::Kind::kJobDir) return OpenLocalStore(dir);
  if (place.kind == StorePlace::Kind::kFiles) {
    absl::StatusOr<std::unique_ptr<FileMetaStore>> files = FileMetaStore::Open(place.directory);
    if (!files.ok()) return files.status();
    opened = *std::move(files);
    name = place.directory;
  } else {
    EtcdMetaStore::Options options;
    options.endpoints = place.etcd.endpoints;
    options.prefix =
        absl::StrCat(place.etcd.prefix.empty() ? kDefaultPrefix : place.etcd.prefix, "/", dir.job());
    absl::StatusOr<std::unique_ptr<EtcdMetaStore>> etcd = EtcdMetaStore::Open(options);
    if (!etcd.ok()) return etcd.status();
    opened = *std::move(etcd);
    name = absl::StrCat("/", options.prefix, " in etcd");
  }
  if (absl::Status mine = Claim(*opened, name, dir); !mine.ok()) return mine;
  return opened;
}

absl::Status ClearJobStore(MetaStore& store, absl::string_view uuid) {
  const absl::StatusOr<Owner> owner = ReadOwner(store);
  if (absl::IsNotFound(owner.status())) return absl::OkStatus();
  if (!owner.ok()) return owner.status();
  return owner->uuid == uuid ? RemoveAll(store) : absl::OkStatus();
}

}  // namespace sherd::runtime

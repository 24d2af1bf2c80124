// Where the servers of a job keep what they agree on, as a person names it, and whose it is.
//
//   absl::StatusOr<StorePlace> place = ParseStorePlace("etcd://10.0.0.1:2379,10.0.0.2:2379/prod");
//   absl::StatusOr<std::unique_ptr<MetaStore>> store = OpenJobStore(*place, dir);
//   ...
//   ClearJobStore(**store, dir.uuid());         // the job has ended: nothing of it stays
//
// In etcd a job stands under PREFIX/JOB ("sherd/JOB" without a prefix). A place that many can reach belongs
// to one run of one job: whoever opens it first. Records of a run of this host whose directory has gone,
// memory and all, are of no use and are removed.
#ifndef SHERD_RUNTIME_ETCD_JOB_STORE_H_
#define SHERD_RUNTIME_ETCD_JOB_STORE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/etcd/etcd_meta_store.h"
#include "runtime/job_dir.h"
#include "runtime/meta_store.h"

namespace sherd::runtime {

struct StorePlace {
  enum class Kind { kJobDir, kFiles, kEtcd };
  Kind kind = Kind::kJobDir;
  std::string directory;  // kFiles
  EtcdPlace etcd;         // kEtcd
};

// `text`: file:DIR, etcd://HOST:PORT,...[/PREFIX], or nothing for the job's own directory. INVALID_ARGUMENT.
absl::StatusOr<StorePlace> ParseStorePlace(absl::string_view text);

// The files of the job's own directory.
absl::StatusOr<std::unique_ptr<MetaStore>> OpenLocalStore(const JobDir& dir);

// Opens the store and makes it this run's, unless it is already.
//   FAILED_PRECONDITION  another run has it, or something that is no job's; etcd is too old
//   UNAVAILABLE          no etcd answers
absl::StatusOr<std::unique_ptr<MetaStore>> OpenJobStore(const StorePlace& place, const JobDir& dir);

// Removes what the run `uuid` stored, if the store is its. To be called when no member is left.
absl::Status ClearJobStore(MetaStore& store, absl::string_view uuid);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_JOB_STORE_H_

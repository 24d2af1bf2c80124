// The one place where a server process keeps what it has of its job: directory, store, and the shared memory
// once there is one.
//
//   JobHome home(&dir, &store, &local);
//   absl::StatusOr<runtime::JobMemory*> memory = home.Memory();      // not before a trainer attached
//
// Thread-safe.
#ifndef SHERD_SERVER_JOB_HOME_H_
#define SHERD_SERVER_JOB_HOME_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "core/job_spec.h"
#include "proto/sherd/v1/job.pb.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/host_place.h"
#include "runtime/job_dir.h"
#include "runtime/job_memory.h"
#include "runtime/meta_store.h"
#include "runtime/mutex.h"

namespace sherd::server {

class JobHome {
 public:
  // All are borrowed. `local` is in files of the job's directory, and may be `store` itself.
  JobHome(const runtime::JobDir* dir, runtime::MetaStore* store, runtime::MetaStore* local,
          runtime::HostPlace place = {})
      : dir_(dir), store_(store), local_(local), place_(place) {}

  const runtime::JobDir& dir() const { return *dir_; }
  // What the servers of the job agree on.
  runtime::MetaStore& store() const { return *store_; }
  // While the store cannot be reached: what that means, in words. Empty otherwise. Never blocks.
  std::string StoreIsAway() const;
  // Who of this host may change the job's memory: its locks are the kernel's, and not lost to a time-out.
  runtime::MetaStore& local() const { return *local_; }
  const runtime::HostPlace& place() const { return place_; }

  // The job's memory, mapped once; it stays mapped as long as this object. Blocks on the file system.
  //   FAILED_PRECONDITION  no trainer has attached yet, so the job has no state
  absl::StatusOr<runtime::JobMemory*> Memory();

  // As the job is described in the store; FAILED_PRECONDITION when it is not yet.
  absl::StatusOr<JobSpec> Spec();

  // Fixes where the values of a job that is about to be made come from: a checkpoint (`from`), which is
  // looked at and must fit `spec`; or rank 0 (null). Once the job is made it only checks that `from` says the
  // same. Coordinator, before MakeMemory; `leader` is the store as its leadership may change it.
  //   FAILED_PRECONDITION  the job was begun otherwise: says how
  //   others               OpenCheckpoint's and RestorePlan::Create's
  absl::Status AgreeOnStart(runtime::MetaStore& leader, const JobSpec& spec, const v1::RestoreFrom* from);
  // How a job that is made began; nullopt: with rank 0's values.
  absl::StatusOr<std::optional<v1::RestoreRecord>> Restored();

  // Makes the job what `spec` says, once; later calls check that they say the same. Reserves the memory.
  // Coordinator, with `leader` as above; on other hosts whichever server a trainer attaches at, after the
  // coordinator has made its own.
  //   FAILED_PRECONDITION  the job is another one: names the field
  //   RESOURCE_EXHAUSTED   no room for it; the next call tries again
  absl::StatusOr<runtime::JobMemory*> MakeMemory(runtime::MetaStore& leader, const JobSpec& spec);

 private:
  absl::StatusOr<JobSpec> SpecLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> OpenOrCreate(const JobSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::optional<v1::RestoreRecord>> RestoredLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const runtime::JobDir* const dir_;
  runtime::MetaStore* const store_;
  runtime::MetaStore* const local_;
  const runtime::HostPlace place_;

  // Held while memory is made: whoever asks for it would have to wait anyway.
  runtime::Mutex mu_;
  std::optional<JobSpec> spec_ ABSL_GUARDED_BY(mu_);
  bool restored_known_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<v1::RestoreRecord> restored_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<runtime::JobMemory> memory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_JOB_HOME_H_

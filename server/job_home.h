// The one place where a server process keeps what it has of its job: directory, store, and the shared memory
// once there is one.
//
//   JobHome home(&dir, &store);
//   absl::StatusOr<runtime::JobMemory*> memory = home.Memory();      // not before a trainer attached
//
// Thread-safe.
#ifndef SHERD_SERVER_JOB_HOME_H_
#define SHERD_SERVER_JOB_HOME_H_

#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "core/job_spec.h"
#include "proto/sherd/v1/job.pb.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/job_dir.h"
#include "runtime/job_memory.h"
#include "runtime/meta_store.h"
#include "runtime/mutex.h"

namespace sherd::server {

class JobHome {
 public:
  // Both are borrowed.
  JobHome(const runtime::JobDir* dir, runtime::MetaStore* store) : dir_(dir), store_(store) {}

  const runtime::JobDir& dir() const { return *dir_; }
  runtime::MetaStore& store() const { return *store_; }

  // The job's memory, mapped once; it stays mapped as long as this object. Blocks on the file system.
  //   FAILED_PRECONDITION  no trainer has attached yet, so the job has no state
  absl::StatusOr<runtime::JobMemory*> Memory();

  // As the job is described in the store; FAILED_PRECONDITION when it is not yet.
  absl::StatusOr<JobSpec> Spec();

  // Fixes where the values of a job that is about to be made come from: a checkpoint (`from`), which is
  // looked at and must fit `spec`; or rank 0 (null). Once the job is made it only checks that `from` says the
  // same. Coordinator, before MakeMemory.
  //   FAILED_PRECONDITION  the job was begun otherwise: says how
  //   others               OpenCheckpoint's and RestorePlan::Create's
  absl::Status AgreeOnStart(const JobSpec& spec, const v1::RestoreFrom* from);
  // How a job that is made began; nullopt: with rank 0's values.
  absl::StatusOr<std::optional<v1::RestoreRecord>> Restored();

  // Makes the job what `spec` says, once; later calls check that they say the same. Reserves the memory.
  // Coordinator.
  //   FAILED_PRECONDITION  the job is another one: names the field
  //   RESOURCE_EXHAUSTED   no room for it; the next call tries again
  absl::StatusOr<runtime::JobMemory*> MakeMemory(const JobSpec& spec);

 private:
  absl::StatusOr<JobSpec> SpecLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::optional<v1::RestoreRecord>> RestoredLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const runtime::JobDir* const dir_;
  runtime::MetaStore* const store_;

  // Held while memory is made: whoever asks for it would have to wait anyway.
  runtime::Mutex mu_;
  std::optional<JobSpec> spec_ ABSL_GUARDED_BY(mu_);
  bool restored_known_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<v1::RestoreRecord> restored_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<runtime::JobMemory> memory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_JOB_HOME_H_

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

  // Makes the job what `spec` says, once; later calls check that they say the same. Reserves the memory.
  // Coordinator.
  //   FAILED_PRECONDITION  the job is another one: names the field
  //   RESOURCE_EXHAUSTED   no room for it; the next call tries again
  absl::StatusOr<runtime::JobMemory*> MakeMemory(const JobSpec& spec);

 private:
  absl::StatusOr<JobSpec> SpecLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const runtime::JobDir* const dir_;
  runtime::MetaStore* const store_;

  // Held while memory is made: whoever asks for it would have to wait anyway.
  runtime::Mutex mu_;
  std::optional<JobSpec> spec_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<runtime::JobMemory> memory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_JOB_HOME_H_

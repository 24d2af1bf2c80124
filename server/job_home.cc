#include "server/job_home.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/convert.h"

namespace sherd::server {
namespace {

constexpr char kSpecKey[] = "job";

}  // namespace

absl::StatusOr<JobSpec> JobHome::SpecLocked() {
  if (spec_.has_value()) return *spec_;
  absl::StatusOr<std::string> bytes = store_->Get(kSpecKey);
  if (absl::IsNotFound(bytes.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", dir_->job(), " has no state yet: no trainer has attached"));
  }
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<JobSpec> spec = DecodeJobSpec(*bytes);
  if (spec.ok()) spec_ = *spec;
  return spec;
}

absl::StatusOr<JobSpec> JobHome::Spec() {
  runtime::MutexLock lock(mu_);
  return SpecLocked();
}

absl::StatusOr<runtime::JobMemory*> JobHome::Memory() {
  runtime::MutexLock lock(mu_);
  if (memory_ != nullptr) return memory_.get();
  absl::StatusOr<JobSpec> spec = SpecLocked();
  if (!spec.ok()) return spec.status();
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> opened =
      runtime::JobMemory::Open(dir_, *spec, runtime::JobMemory::Role::kOwner);
  if (absl::IsNotFound(opened.status())) {
    return absl::FailedPreconditionError(absl::StrCat("the memory of job ", dir_->job(), " is being made"));
  }
  if (!opened.ok()) return opened.status();
  memory_ = *std::move(opened);
  return memory_.get();
}

absl::StatusOr<runtime::JobMemory*> JobHome::MakeMemory(const JobSpec& asked) {
  runtime::MutexLock lock(mu_);
  absl::StatusOr<JobSpec> spec = SpecLocked();
  if (absl::IsFailedPrecondition(spec.status()) && !spec_.has_value()) {
    JobSpec mine = asked;
    mine.uuid = dir_->uuid();
    // A coordinator before this one may have stored it meanwhile, and died: then that one counts.
    absl::Status stored = store_->CreateIfAbsent(kSpecKey, EncodeJobSpec(mine));
    if (!stored.ok() && !absl::IsAlreadyExists(stored)) return stored;
    spec = SpecLocked();
  }
  if (!spec.ok()) return spec.status();
  if (absl::Status same = CheckSame(*spec, asked); !same.ok()) return same;
  if (memory_ != nullptr) return memory_.get();
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> memory =
      runtime::JobMemory::Open(dir_, *spec, runtime::JobMemory::Role::kOwner);
  if (absl::IsNotFound(memory.status())) memory = runtime::JobMemory::Create(dir_, *spec);
  if (absl::IsResourceExhausted(memory.status())) {
    // Nobody has attached: let a smaller model have the job's name.
    store_->Delete(kSpecKey).IgnoreError();
    spec_.reset();
  }
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  return memory_.get();
}

}  // namespace sherd::server

#include "server/job_home.h"

#include <fcntl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "runtime/flock.h"
#include "runtime/unique_fd.h"
#include "server/restore_plan.h"

namespace sherd::server {
namespace {

constexpr char kSpecKey[] = "job";
constexpr char kRestoreKey[] = "restore";

// How two trainers would begin the same job, in words.
std::string Words(const v1::RestoreRecord& r) {
  return absl::StrCat("from checkpoint ", r.asked_tag().empty() ? "`latest`" : r.asked_tag(), " of ",
                      r.directory(), r.weights_only() ? ", weights only" : "",
                      r.partial() ? ", partially" : "");
}

}  // namespace

std::string JobHome::StoreIsAway() const {
  const std::string trouble = store_->Trouble();
  if (trouble.empty()) return "";
  return absl::StrCat(trouble, ": training goes on, but no member can come or go until it does");
}

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

absl::StatusOr<std::optional<v1::RestoreRecord>> JobHome::RestoredLocked() {
  if (restored_known_) return restored_;
  absl::StatusOr<std::string> bytes = store_->Get(kRestoreKey);
  if (!bytes.ok() && !absl::IsNotFound(bytes.status())) return bytes.status();
  std::optional<v1::RestoreRecord> record;
  if (bytes.ok() && !record.emplace().ParseFromString(*bytes)) {
    return absl::DataLossError(absl::StrCat("the record of where job ", dir_->job(), " began is damaged"));
  }
  // Until the job is made it may change.
  restored_known_ = spec_.has_value();
  restored_ = record;
  return record;
}

absl::StatusOr<std::optional<v1::RestoreRecord>> JobHome::Restored() {
  runtime::MutexLock lock(mu_);
  if (absl::StatusOr<JobSpec> spec = SpecLocked(); !spec.ok()) return spec.status();
  return RestoredLocked();
}

absl::Status JobHome::AgreeOnStart(runtime::MetaStore& leader, const JobSpec& asked,
                                   const v1::RestoreFrom* from) {
  v1::RestoreRecord wanted;
  if (from != nullptr) {
    wanted.set_directory(from->directory());
    wanted.set_asked_tag(from->tag());
    wanted.set_weights_only(from->weights_only());
    wanted.set_partial(from->partial());
  }
  runtime::MutexLock lock(mu_);
  const absl::StatusOr<JobSpec> spec = SpecLocked();
  if (spec.ok()) {
    const absl::StatusOr<std::optional<v1::RestoreRecord>> began = RestoredLocked();
    if (!began.ok()) return began.status();
    const std::string is = began->has_value() ? Words(**began) : "with initial values of rank 0";
    const std::string asks = from != nullptr ? Words(wanted) : "with initial values of rank 0";
    if (is == asks) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("job ", dir_->job(), " began ", is,
                                                      " but this trainer asks for it to begin ", asks,
                                                      ": every rank must give the same options"));
  }
  if (!absl::IsFailedPrecondition(spec.status())) return spec.status();
  absl::Status gone = leader.Delete(kRestoreKey);
  if (!gone.ok() && !absl::IsNotFound(gone)) return gone;
  if (from == nullptr) return absl::OkStatus();
  const absl::StatusOr<RestorePlan> plan = RestorePlan::Open(*from, asked);
  if (!plan.ok()) return plan.status();
  wanted.set_tag(plan->saved().tag);
  wanted.set_step(plan->weights_only() ? 0 : plan->saved().manifest.step());
  return leader.CreateIfAbsent(kRestoreKey, wanted.SerializeAsString());
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

absl::StatusOr<std::unique_ptr<runtime::JobMemory>> JobHome::OpenOrCreate(const JobSpec& spec) {
  // On a joined host several servers may be asked at once, and one alone may make it.
  const std::string path = absl::StrCat(dir_->path(), "/making");
  runtime::UniqueFd lock(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  if (!lock.ok() || runtime::Flock(lock.get(), LOCK_EX) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot lock ", path));
  }
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> memory =
      runtime::JobMemory::Open(dir_, spec, runtime::JobMemory::Role::kOwner);
  if (absl::IsNotFound(memory.status())) memory = runtime::JobMemory::Create(dir_, spec, place_);
  return memory;
}

absl::StatusOr<runtime::JobMemory*> JobHome::MakeMemory(runtime::MetaStore& leader, const JobSpec& asked) {
  runtime::MutexLock lock(mu_);
  absl::StatusOr<JobSpec> spec = SpecLocked();
  if (absl::IsFailedPrecondition(spec.status()) && !spec_.has_value()) {
    JobSpec mine = asked;
    mine.uuid = dir_->uuid();
    // A coordinator before this one may have stored it meanwhile, and died: then that one counts.
    absl::Status stored = leader.CreateIfAbsent(kSpecKey, EncodeJobSpec(mine));
    if (!stored.ok() && !absl::IsAlreadyExists(stored)) return stored;
    spec = SpecLocked();
  }
  if (!spec.ok()) return spec.status();
  if (absl::Status same = CheckSame(*spec, asked); !same.ok()) return same;
  if (memory_ != nullptr) return memory_.get();
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> memory = OpenOrCreate(*spec);
  if (absl::IsResourceExhausted(memory.status())) {
    // Nobody has attached: let a smaller model have the job's name.
    leader.Delete(kSpecKey).IgnoreError();
    spec_.reset();
  }
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  return memory_.get();
}

}  // namespace sherd::server

#include "runtime/link_admission.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sherd::runtime {

LinkAdmission::LinkAdmission(LinkIdentity self, uint32_t hosts)
    : hosts_(hosts), self_(std::move(self)), newest_(hosts, 0) {}

LinkIdentity LinkAdmission::self() const {
  MutexLock lock(mu_);
  return self_;
}

void LinkAdmission::SetEpoch(uint64_t epoch, uint64_t oldest_taken) {
  MutexLock lock(mu_);
  self_.epoch = epoch;
  oldest_epoch_ = oldest_taken;
}

void LinkAdmission::SetLayoutHash(uint64_t layout_hash) {
  MutexLock lock(mu_);
  self_.layout_hash = layout_hash;
}

void LinkAdmission::Fence(uint32_t host, uint64_t oldest) {
  MutexLock lock(mu_);
  newest_[host] = std::max(newest_[host], oldest);
}

absl::Status LinkAdmission::Admit(const LinkIdentity& peer) {
  MutexLock lock(mu_);
  if (peer.job_uuid != self_.job_uuid) {
    return absl::PermissionDeniedError(absl::StrCat("it belongs to job ", peer.job_uuid, ", this is ",
                                                    self_.job_uuid, ": give each job its own port"));
  }
  if (peer.host >= hosts_ || peer.host == self_.host) {
    return absl::InvalidArgumentError(absl::StrCat("it says to be host ", peer.host, "; this is host ",
                                                   self_.host, " of ", hosts_,
                                                   ": start each host with its own number"));
  }
  if (peer.epoch < oldest_epoch_) {
    return absl::FailedPreconditionError(absl::StrCat("it knows epoch ", peer.epoch, ", older than ",
                                                      oldest_epoch_, ": it has to join again"));
  }
  if (peer.incarnation < newest_[peer.host]) {
    return absl::FailedPreconditionError(absl::StrCat("it is incarnation ", peer.incarnation, " of host ",
                                                      peer.host, ", which ", newest_[peer.host],
                                                      " has replaced"));
  }
  if (peer.layout_hash != 0 && self_.layout_hash != 0 && peer.layout_hash != self_.layout_hash) {
    return absl::FailedPreconditionError(
        absl::StrFormat("its layout (%016x) is not the one here (%016x): all hosts must train the same model",
                        peer.layout_hash, self_.layout_hash));
  }
  newest_[peer.host] = peer.incarnation;
  return absl::OkStatus();
}

}  // namespace sherd::runtime

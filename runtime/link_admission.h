// Which peers a host takes data connections from and to: those of its own job, epoch, layout, and of no older
// incarnation than one it has met. Asked only about peers that have proved to know the job's secret.
//
//   LinkAdmission admission(self, /*hosts=*/2);
//   ... LinkListener and Link::Dial use it ...
//   admission.SetEpoch(8, /*oldest_taken=*/7);      // a new epoch
//
// Pure but for its lock: no clock, no I/O. Thread-safe.
#ifndef SHERD_RUNTIME_LINK_ADMISSION_H_
#define SHERD_RUNTIME_LINK_ADMISSION_H_

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "runtime/link_protocol.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

class LinkAdmission {
 public:
  // REQUIRES: self.host < hosts.
  LinkAdmission(LinkIdentity self, uint32_t hosts);

  // What this host says of itself in the next handshake.
  LinkIdentity self() const;

  // The epoch that this host knows, and the oldest that a peer may know: one that lost its connection knows
  // an older one until it is connected again.
  void SetEpoch(uint64_t epoch, uint64_t oldest_taken);
  void SetLayoutHash(uint64_t layout_hash);
  // Of that host none older than this is admitted any more. REQUIRES: host < hosts.
  void Fence(uint32_t host, uint64_t oldest);

  // OK when `peer` may be connected; remembers its incarnation then.
  //   PERMISSION_DENIED    another job
  //   INVALID_ARGUMENT     not one of the other hosts
  //   FAILED_PRECONDITION  stale epoch, stale incarnation or another layout: names both values
  absl::Status Admit(const LinkIdentity& peer);

 private:
  const uint32_t hosts_;
  mutable Mutex mu_;
  LinkIdentity self_ ABSL_GUARDED_BY(mu_);
  uint64_t oldest_epoch_ ABSL_GUARDED_BY(mu_) = 0;
  // By host: of the newest incarnation met.
  std::vector<uint64_t> newest_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_ADMISSION_H_
